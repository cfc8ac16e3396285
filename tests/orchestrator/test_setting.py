import pytest

from orchestrator.plan import make_plan


def setting_of(recipe, *sets):
    return make_plan(["table1"], recipe, seeds=(0,), sets=sets).studies[0].setting


def test_a_recipe_is_named_by_its_data_backbone_and_length_with_the_accuracy_of_guessing():
    assert dict(setting_of("imagenet").lines) == {
        "Data": "ImageNet at 224 px; chance is 0.1 %",
        "Backbone": "ResNet-50 (D = 2048)",
        "Training": "100 epochs of batch 4096",
        "Recipe": "imagenet, unchanged",
    }
    assert setting_of("cifar100").chance == 1.0


def test_overrides_are_named_one_by_one_where_they_can_change_a_number(tmp_path):
    changed = setting_of(
        "digits", "epochs=2", "schedule.warmup_epochs=1", f"data.root={tmp_path}", "resources.cpus_per_worker=2",
        "optimizer={kind: lars, lr: 1.6}",
    )  # fmt: skip
    assert changed.changes == (
        "epochs=2",
        "schedule.warmup_epochs=1",
        'optimizer={"kind": "lars", "lr": 1.6}',
    )
    assert changed.caption.endswith(f"2 epochs of batch 128; with {', '.join(changed.changes)}")
    assert str(tmp_path) not in str(changed)


def test_of_a_folder_whose_name_says_nothing_the_accuracy_of_guessing_is_not_known():
    mine = setting_of("imagenet", "data.name=my_photos", "data.train_images=20000")
    assert mine.chance is None
    assert dict(mine.lines)["Data"] == "my_photos at 224 px, 20,000 images"
    assert "chance" not in mine.caption


@pytest.mark.parametrize("recipe", ["digits", "fashion_mnist", "cifar10", "stl10"])
def test_ten_classes_are_guessed_one_time_in_ten(recipe):
    assert setting_of(recipe).chance == 10.0
