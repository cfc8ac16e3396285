#!/usr/bin/env python3
"""Makes a bucket where there is none: make_bucket.py NAME. Endpoint and keys are those of the AWS environment."""

import sys

import boto3
from botocore.exceptions import ClientError


def main(name: str) -> None:
    store = boto3.client("s3")
    try:
        store.head_bucket(Bucket=name)
        print(f"bucket {name}: there already")
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        store.create_bucket(Bucket=name)
        print(f"bucket {name}: made")


if __name__ == "__main__":
    main(sys.argv[1])
