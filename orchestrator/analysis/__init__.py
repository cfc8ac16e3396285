"""What numbers and claims can be decided, without records or frames."""
