"""Concepts: prompts by the filewords rules, A1111's file, class pictures that are asked for."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from inference.images.infotext.reading import read_infotext
from inference.images.infotext.text import parse_infotext
from inference.recipe.layers import RecipeError
from inference.recipe.loader import RecipeWarning, load_recipe
from inference.runtime.errors import InputError
from train.class_images import missing, portions
from train.common.errors import DataError
from train.config.concepts import ConceptConfig, read_concepts_list
from train.config.data import DataConfig
from train.config.recipe import TrainRecipe
from train.config.schema import train_schema
from train.data.sources.captions import class_prompt, instance_prompt, words_of_name
from train.data.sources.concepts import ClassFolder, class_folders, class_pictures, find_concepts
from train.data.sources.sources import find_sources
from train.monitoring.previews import grid_images

MakeRecipe = Callable[..., TrainRecipe]


def concept(**options: Any) -> ConceptConfig:
    given: dict[str, Any] = {"instance_data_dir": "subject"} | options
    return ConceptConfig(**given)


# Prompts


@pytest.mark.parametrize(
    ("caption", "subject", "kind"),
    [  # instance_token sks, class_token dog
        ("a photo of a dog", "a photo of sks", "a photo of a dog"),
        ("The dog and an apple", "sks and an apple", "The dog and an apple"),
        ("dog, grass", "sks, grass", "dog, grass"),
        ("sks dog, grass", "sks dog, grass", "dog, grass"),
        ("sks in the grass", "sks in the grass", "dog in the grass"),
        ("grass", "sks, grass", "dog, grass"),
        ("dogs", "sks, dogs", "dog, dogs"),  # another word
        ("", "sks", "dog"),
        (r"  \(Dog\),   grass ", "(sks), grass", "(Dog), grass"),
    ],
)
def test_filewords_with_both_tokens(caption: str, subject: str, kind: str) -> None:
    both = concept(instance_token="sks", class_token="dog")
    assert instance_prompt(both, caption) == subject
    assert class_prompt(both, caption) == kind


def test_filewords_with_one_token_or_none() -> None:
    one = concept(instance_token="sks")
    assert (instance_prompt(one, "a dog"), class_prompt(one, "a dog")) == ("sks, a dog", "a dog")
    other = concept(class_token="dog")
    assert (instance_prompt(other, "it"), class_prompt(other, "it")) == ("it", "dog, it")
    fixed = concept(instance_prompt="photo of sks [filewords]", class_prompt="photo of a dog")
    assert instance_prompt(fixed, "asleep") == "photo of sks asleep"
    assert class_prompt(fixed, "asleep") == "photo of a dog"


def test_a_subject_whose_name_has_the_class_in_it() -> None:
    named = concept(instance_token="sks dog", class_token="dog")
    assert instance_prompt(named, "sks dog, grass") == "sks dog, grass"
    assert instance_prompt(named, "a dog, grass") == "sks dog, grass"
    assert class_prompt(named, "sks dog, grass") == "dog, grass"


def test_a_file_s_name_is_its_caption_without_the_number() -> None:
    names = ("01-2 a dog", "dog 7", "3", "a-dog")
    assert [words_of_name(name) for name in names] == ["a dog", "dog 7", "", "a-dog"]


def save(path: Path, caption: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), "red").save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


def test_pictures_and_what_they_ask_for(tmp_path: Path) -> None:
    save(tmp_path / "1.png", "sks dog, grass")
    save(tmp_path / "2.png", "sks, grass")
    save(tmp_path / "3 snow.png")
    config = concept(
        instance_data_dir=str(tmp_path),
        instance_token="sks",
        class_token="dog",
        num_class_images_per=3,
    )
    (found,) = find_concepts(DataConfig(concepts={"rex": config}))
    prompts = ("sks dog, grass", "sks, grass", "sks, snow")
    assert [picture.captions for picture in found.pictures] == [(text,) for text in prompts]
    assert found.class_prompts == Counter({"dog, grass": 6, "dog, snow": 3})


def test_folders_that_cannot_be_used_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    one = concept(instance_data_dir=str(tmp_path / "nowhere"))
    two = concept(instance_data_dir=str(tmp_path / "empty"))
    with pytest.raises(DataError) as error:
        find_concepts(DataConfig(concepts={"a": one, "b": two}))
    first, second = str(error.value).splitlines()
    assert first == f"data.concepts.a.instance_data_dir: '{tmp_path}/nowhere' is not a folder"
    assert second.startswith("data.concepts.b.instance_data_dir: no pictures in ")


# A1111's file

AS_A1111_WRITES = {
    "instance_data_dir": "rex",
    "class_data_dir": "",
    "instance_prompt": "[filewords]",
    "class_prompt": "[filewords]",
    "save_sample_prompt": "",
    "save_sample_template": "",
    "instance_token": "sks",
    "class_token": "dog",
    "num_class_images_per": 5,
    "class_negative_prompt": "",
    "class_guidance_scale": 7.5,
    "class_infer_steps": 40,
    "save_sample_negative_prompt": "",
    "n_save_sample": 1,
    "sample_seed": -1,
    "save_guidance_scale": 7.5,
    "save_infer_steps": 20,
    "is_valid": True,
}


def concepts_list(folder: Path, *entries: Any) -> str:
    file = folder / "concepts_list.json"
    file.write_text(json.dumps(list(entries)))
    return str(file)


def test_a_file_as_a1111_writes_it(tmp_path: Path) -> None:
    read = read_concepts_list(concepts_list(tmp_path, AS_A1111_WRITES))
    expected = concept(
        instance_data_dir=str(tmp_path / "rex"),
        instance_token="sks",
        class_token="dog",
        num_class_images_per=5,
    )
    assert read.concepts == {"concept-1": expected}
    assert read.notes == []


def test_paths_of_windows(tmp_path: Path) -> None:
    entries = [{"instance_data_dir": path} for path in ("pics\\rex", "C:\\pics\\rex")]
    one, two = read_concepts_list(concepts_list(tmp_path, *entries)).concepts.values()
    assert one.instance_data_dir == str(tmp_path / "pics" / "rex")
    assert two.instance_data_dir == "C:\\pics\\rex"


def test_types_are_coerced_unused_panels_left_out_unknown_keys_named(tmp_path: Path) -> None:
    odd = AS_A1111_WRITES | {
        "instance_data_dir": "/elsewhere/rex",
        "class_data_dir": "dogs",
        "num_class_images_per": "5",
        "class_infer_steps": 30.0,
        "class_guidance_scale": 7,
        "save_guidance_scale": None,
        "class_prompt": "",
        "class_promt": "a dog",
        "max_steps": -1,
    }
    read = read_concepts_list(concepts_list(tmp_path, {"instance_data_dir": ""}, odd))
    (found,) = read.concepts.values()
    assert list(read.concepts) == ["concept-2"]
    assert (found.instance_data_dir, found.class_data_dir) == (
        "/elsewhere/rex",
        str(tmp_path / "dogs"),
    )
    numbers = (found.num_class_images_per, found.class_infer_steps, found.class_guidance_scale)
    assert numbers == (5, 30, 7.0)
    assert [type(number) for number in numbers] == [int, int, float]
    assert (found.save_guidance_scale, found.class_prompt) == (7.5, "[filewords]")
    assert read.notes == [
        "concept-1 has no instance_data_dir and is left out",
        "concept-2.class_promt: no field of a concept, has no effect; did you mean class_prompt?",
        "concept-2.max_steps: no field of a concept, has no effect",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON: "),
        ("{}", r"expected a list of concepts, \[\{…\}, \{…\}\], as A1111 writes it"),
        ("[]", "no concept with an instance_data_dir"),
        (
            '[{"instance_data_dir": "a", "n_save_sample": "two"}]',
            'concept-1.n_save_sample: expected a whole number, got "two"',
        ),
        (
            '[{"instance_data_dir": "a", "class_infer_steps": 1.5}]',
            "concept-1.class_infer_steps: expected a whole number, got 1.5",
        ),
        (
            '[{"instance_data_dir": "a", "instance_token": 7}]',
            "concept-1.instance_token: expected text, got 7",
        ),
        (
            '[{"instance_data_dir": "a", "class_infer_steps": 0}]',
            "concept-1.class_infer_steps: must be at least 1, got 0",
        ),
    ],
)
def test_a_file_that_is_no_concepts_list(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_concepts_list(str(tmp_path / "list.json"))


# The recipe


def load(tmp_path: Path, text: str) -> Any:
    (tmp_path / "recipe.yaml").write_text(f"name: x\n{text}")
    return load_recipe(tmp_path / "recipe.yaml", train_schema)


SOUND = "concepts: {a: {instance_data_dir: a, instance_token: sks, class_token: dog"
WRONG = {
    "objective: {type: lora}": "data.path: must be given (a folder of pictures with captions), or "
    "data.subsets (several), or data.concepts or data.concepts_list (subjects with pictures of "
    "their class)",
    "objective: {type: lora}\ndata: {path: x, " + SOUND + "}}}": "data.concepts: path and concepts "
    "exclude each other; give one of them",
    "objective: {type: dreambooth}\ndata: {path: x}": "data.concepts: objective.type: dreambooth "
    "learns concepts: give data.concepts (or data.concepts_list), or take objective.type: "
    "text_to_image for a folder of images with captions",
    "objective: {type: autoencoder}\ndata: {" + SOUND + "}}}": "data.concepts: need prompts, "
    "which objective.type: autoencoder has none of",
    "objective: {type: lora}\ndata: {" + SOUND + ", class_data_dir: a/b}}}": "data.concepts.a."
    "class_data_dir: 'a/b' and instance_data_dir 'a' lie within each other, so that pictures would "
    "be subject and class at once; take folders side by side",
    "objective: {type: lora}\ndata: {concepts: {a: {instance_data_dir: a, num_class_images_per: 1"
    "}}}": "data.concepts.a.class_prompt: is the same as instance_prompt, so that the class "
    "would be trained as the subject; set instance_token and class_token, or describe the class",
    "objective: {type: lora}\ndata: {" + SOUND + ", clas_prompt: b}}}": "data.concepts.a."
    "clas_prompt: Key 'clas_prompt' not in 'ConceptConfig'. Did you mean one of: 'class_prompt', "
    "'class_negative_prompt', 'instance_prompt'?",
    "objective: {type: dreambooth, train_text_encoder: true, stop_text_encoder_training: 0}\n"
    "data: {" + SOUND + "}}}": "objective.stop_text_encoder_training: 0 would never train it; "
    "use train_text_encoder: false",
    "objective: {type: lora}\ndata: {concepts: {a/b: {instance_data_dir: a}}}": "data.concepts.a/b"
    ": names a folder of class pictures: no / and no . in front",
    "objective: {type: lora}\ndata: {concepts_list: no.json}": "data.concepts_list: 'no.json' "
    "is not a file",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_recipe_is_told(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as error:
        load(tmp_path, text)
    assert str(error.value) == f"recipe.yaml: {WRONG[text]}"


IDLE = {
    "data: {" + SOUND + ", class_infer_steps: 3}}}": "data.concepts.a.class_infer_steps: has no "
    "effect with num_class_images_per: 0",
    "data: {" + SOUND + ", sample_seed: 3}}}": "data.concepts.a.sample_seed: has no effect without "
    "save_sample_prompt or save_sample_template",
    "data: {captions: {template: none}, " + SOUND + "}}}": "data.captions.template: has no effect: "
    "concepts have instance_prompt",
    "data: {path: x}\nloss: {prior_weight: 0.5}": "loss.prior_weight: has no effect: no concept "
    "has class images (num_class_images_per)",
    "loss: {prior_weight: 0}\ndata: {" + SOUND + ", num_class_images_per: 1}}}": "loss.prior_weight"
    ": 0 gives class images no effect, while each costs as much as an instance image; "
    "num_class_images_per: 0 (or no subset with is_reg) leaves them out",
    "data: {path: x}\nsampling: {sanity_seed: 1}": "sampling.sanity_seed: has no effect without "
    "sanity_prompt",
}


@pytest.mark.parametrize("text", IDLE)
def test_option_without_effect_is_told(text: str, tmp_path: Path) -> None:
    with pytest.warns(RecipeWarning) as reported:
        load(tmp_path, f"objective: {{type: lora}}\n{text}")
    file = tmp_path / "recipe.yaml"
    assert [str(one.message) for one in reported] == [f"{file}: {IDLE[text]}"]


def test_shuffled_tags_leave_the_subject_in_front(make_recipe: MakeRecipe, pictures: Path) -> None:
    sources = find_sources(
        make_recipe(
            "data.path=null",
            f"data.concepts.a={{instance_data_dir: {pictures}, instance_token: sks}}",
            "data.captions.shuffle_tags=true",
        )
    )
    assert sources.config.captions.keep_tokens == 1
    assert [picture.captions[0][:5] for picture in sources.pictures] == ["sks, "] * 8


# Class pictures


def folder(path: Path, **wanted: int) -> ClassFolder:
    config = concept(instance_token="sks", class_token="dog", num_class_images_per=1)
    counter = Counter({name.replace("_", " "): number for name, number in wanted.items()})
    return ClassFolder(path, "rex", config, counter)


def numbers(of: ClassFolder) -> Counter[str]:
    return Counter(picture.prompt for picture in of.to_draw(5, [".txt"]))


def test_seeds_follow_from_recipe_concept_and_number(tmp_path: Path) -> None:
    drawn = folder(tmp_path, a_dog=3, dog=2).to_draw(5, [".txt"])
    assert [one.prompt for one in drawn] == ["a dog"] * 3 + ["dog"] * 2
    first = drawn[0].seed
    assert [one.seed - first for one in drawn] == [0, 1, 2, 0, 1]
    assert len({one.file for one in drawn}) == 5
    assert folder(tmp_path, a_dog=1).to_draw(6, [".txt"])[0].seed != first
    other = ClassFolder(tmp_path, "bob", concept(), Counter({"a dog": 1}))
    assert other.to_draw(5, [".txt"])[0].seed != first


def test_pictures_that_are_there_take_the_place_of_drawn_ones(tmp_path: Path) -> None:
    asked = folder(tmp_path, a_dog=4, dog=2)
    assert numbers(asked) == {"a dog": 4, "dog": 2}
    save(tmp_path / "mine.png", "dog")
    assert numbers(asked) == {"a dog": 4, "dog": 1}
    save(tmp_path / "yours.png", "a black dog")  # counts where most is missing
    assert numbers(asked) == {"a dog": 3, "dog": 1}
    for one in asked.to_draw(5, [".txt"])[1:3]:
        save(one.file, one.prompt)
    assert numbers(asked) == {"a dog": 3, "dog": 1}  # also those that are drawn by now
    for number in range(9):
        save(tmp_path / f"{number}.png")
    assert numbers(asked) == {}
    found = class_pictures([asked], [".txt"], "refuse")
    assert len(found) == 13
    assert Counter(picture.captions[0] for picture in found) == {
        "a black dog": 1,
        "a dog": 2,
        "dog": 10,  # nine of them by the rule for pictures without a caption
    }


def test_no_class_pictures_are_never_taken_for_none_wanted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no class pictures in .* rex asks for 3 of them"):
        class_pictures([folder(tmp_path, dog=3)], [".txt"], "refuse")


def test_portions_do_not_depend_on_which_pictures_are_there(tmp_path: Path) -> None:
    found = portions([folder(tmp_path, a_dog=4, dog=3)], 5, 2, [".txt"])
    assert [len(pictures) for _, pictures in found] == [2, 2, 2, 1]
    assert missing(found) == [0, 1, 2, 3]
    for picture in found[0][1]:
        save(picture.file, picture.prompt)
    save(found[2][1][0].file, found[2][1][0].prompt)  # cut after the first of its portion
    again = portions([folder(tmp_path, a_dog=4, dog=3)], 5, 2, [".txt"])
    assert again == found
    assert missing(again) == [1, 2, 3]


def test_concepts_share_a_folder_if_they_draw_alike(tmp_path: Path) -> None:
    def folders(**options: Any) -> list[ClassFolder]:
        shared = {"class_data_dir": str(tmp_path / "dogs"), "num_class_images_per": 2}
        tokens = {"instance_token": "sks", "class_token": "dog", "class_prompt": "dog"}
        one = concept(instance_data_dir=str(tmp_path / "a"), **shared, **tokens)
        two = concept(instance_data_dir=str(tmp_path / "b"), **shared, **tokens | options)
        return class_folders(find_concepts(DataConfig(concepts={"a": one, "b": two})), tmp_path)

    save(tmp_path / "a" / "1.png")
    save(tmp_path / "b" / "1.png")
    assert [one.wanted for one in folders()] == [Counter({"dog": 4})]
    with pytest.raises(DataError, match=r"shared by the concepts a and b, whose class_infer_steps"):
        folders(class_infer_steps=7)


# The grid


def test_pictures_of_the_grid(make_recipe: MakeRecipe, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("sks asleep\n\n[filewords], at night\n")
    about = f"instance_data_dir: {pictures}, instance_token: sks, save_infer_steps: 4"
    recipe = make_recipe(
        "data.path=null",
        f"data.concepts.a={{{about}, save_sample_prompt: sks, n_save_sample: 2, sample_seed: 7, "
        "save_sample_negative_prompt: blurry}",
        f"data.concepts.b={{{about}, save_sample_template: {tmp_path}/lines.txt}}",
        "sampling.images.mine.prompt=red",
        "sampling.sanity_prompt=a house",
        "sampling.settings.sampler=Euler",
    )
    images = grid_images(recipe, find_sources(recipe).concepts)
    assert list(images) == ["mine", "a-1", "a-2", "b-1", "b-2", "sanity"]
    assert [image.prompt for image in images.values()] == [
        "red", "sks", "sks", "sks asleep", "sks, red, number 0, over yellow, at night", "a house",
    ]  # fmt: skip
    seeds = [image.seed for image in images.values()]
    assert (seeds[1:3], seeds[5]) == ([7, 8], 420420)
    assert seeds[3] != seeds[4] - 2  # its own, from the recipe's seed
    assert {image.sampler for image in images.values()} == {"Euler"}
    assert [image.steps for image in images.values()] == [2, 4, 4, 4, 4, 2]
    negatives = [image.negative_prompt for image in images.values()]
    assert negatives == ["", "blurry", "blurry", "", "", "blurry"]


# Drawing them


def drawn(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def test_a_cut_drawing_goes_on_and_the_base_model_draws(
    make_recipe: MakeRecipe, pictures: Path, tmp_path: Path
) -> None:
    """Of a hypernetwork, which begins with a change; killed between two files of a portion."""
    from train.class_images import keep as real_keep
    from train.trainer import Trainer

    def recipe(name: str, objective: str) -> TrainRecipe:
        return make_recipe(
            f"name={name}",
            f"objective={objective}",
            "data.path=null",
            f"data.concepts.a={{instance_data_dir: {pictures}, instance_token: sks, class_prompt: "
            "number, num_class_images_per: 1, class_infer_steps: 2}",
            "sampling.batch_size=3",
            "max_train_steps=1",
        )

    far = "{type: hypernetwork, weight_initialization: KaimingNormal, add_layer_norm: true}"
    count = 0

    def cut(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        real_keep(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.class_images.keep", cut)
        with pytest.raises(KeyboardInterrupt):
            Trainer(recipe("cut", far)).train()
    folder = tmp_path / "cut" / "class_images" / "a"
    before = drawn(folder)
    assert len(before) == 2 * 4
    times = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    Trainer(recipe("cut", far)).train()
    after = drawn(folder)
    assert len(after) == 2 * 8
    assert before.items() <= after.items()
    assert {file: file.stat().st_mtime_ns for file in times} == times
    Trainer(recipe("straight", "{type: lora, rank: 2}")).train()
    assert drawn(tmp_path / "straight" / "class_images" / "a") == after
    picture = next(folder.glob("*.png"))
    infotext = parse_infotext(read_infotext(picture) or "")
    assert infotext.prompt == picture.with_suffix(".txt").read_text() == "number"
    assert infotext.parameters["Steps"] == "2"
    assert picture.stem.endswith(infotext.parameters["Seed"].zfill(10))
