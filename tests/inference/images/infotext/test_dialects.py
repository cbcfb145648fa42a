"""Infotext as extensions of A1111 and other programs write it, and what they write in its place."""

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from inference.__main__ import main
from inference.images.img2img.upscalers import check_upscaler
from inference.images.infotext.reading import read_infotext
from inference.images.infotext.redraw_keys import sampler_and_schedule
from inference.images.infotext.text import parse_infotext
from inference.images.redraw import load_picture, recipe_from_infotext, recipe_from_picture
from inference.media.pictures import save_picture
from inference.runtime.errors import InputError

LINE = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x32, Model: picto"


def png(path, size=(64, 32), **texts):
    """A PNG with texts."""
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", size).save(path, pnginfo=info)
    return path


def drawn(path, *overrides):
    """The picture's recipe entry, and its notes."""
    recipe, notes = load_picture(path, overrides)
    return recipe.images["picture"], notes


def test_templates_of_dynamic_prompts_below_the_settings(tmp_path):
    """They used to be the parameters' end: all of it was a negative prompt, and the seed 0."""
    template = "# quality\n(red:1.3), 8K,\n\n1girl, __a/b__, c: d, e: f, g: h"
    text = f"red apple\nNegative prompt: blurry\n{LINE}\nTemplate: {template}"
    save_picture(tmp_path / "a.webp", Image.new("RGB", (64, 32)), text)
    image, notes = drawn(tmp_path / "a.webp")
    assert (image.prompt, image.negative_prompt) == ("red apple", "blurry")
    assert (image.steps, image.sampler, image.seed, image.width) == (20, "Euler a", 5, 64)
    assert not [note for note in notes if "emplate" in note]
    found = parse_infotext(f"{text}\nNegative Template: x\ny").parameters
    assert (found["Template"], found["Negative Template"]) == (template, "x\ny")


@pytest.mark.parametrize(
    ("text", "prompt", "expected"),
    [
        # a line break in the quotes of an extension's value
        (f'p\n{LINE}, Wildcard prompt: "red,\n{{a|b}}", Version: v1.5.1', "p",
         {"Wildcard prompt": "red,\n{a|b}", "Version": "v1.5.1", "Seed": "5"}),
        # and without quotes
        (f"p\n{LINE}, Note: red\nblue, Version: v1.5.1", "p",
         {"Note": "red", "Version": "v1.5.1", "Seed": "5"}),
        # below the settings, which it does not change
        (f"p\n{LINE}\nTime taken: 3s, Seed: 9", "p", {"Time taken": "3s", "Seed": "5"}),
        # the last line with Steps, not the first
        (f"p\nSteps: 1, Seed: 2, Eta: 0\n{LINE}\nx", "p\nSteps: 1, Seed: 2, Eta: 0",
         {"Seed": "5"}),
        ("p\nSampler: Euler, Seed: 3, Steps: 2", "p", {"Sampler": "Euler", "Steps": "2"}),
        # JSON without quotes
        (f'p\n{LINE}, Hashes: {{"model": "0123456789", "lora:a": "ab"}}, Clip skip: 2', "p",
         {"Hashes": '{"model": "0123456789", "lora:a": "ab"}', "Clip skip": "2"}),
        (f"p\n{LINE}, Odd: [a, Clip skip: 2", "p", {"Odd": "[a", "Clip skip": "2"}),
        # pipes of SD.Next
        ("p\nSteps: 20 | Size: 64x32 | Sampler: DPM++ 2M | Seed: 5 | App: SD.Next | Tiling", "p",
         {"Steps": "20", "Size": "64x32", "Sampler": "DPM++ 2M", "Tiling": "Tiling"}),
    ],
)  # fmt: skip
def test_parameters_wherever_they_are(text, prompt, expected):
    found = parse_infotext(text)
    assert found.prompt == prompt
    assert {key: found.parameters[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Sampler: DPM++ 2M", ("DPM++ 2M", "Uniform")),
        ("Sampler: DPM++ 2M, Version: v1.9.4", ("DPM++ 2M", "Uniform")),
        ("Sampler: DPM++ 2M, Version: f2.0", ("DPM++ 2M", "Uniform")),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", ("DPM++ 2M", "Automatic")),
        ("Sampler: DPM++ 2M Karras", ("DPM++ 2M", "Karras")),
        ("Sampler: Euler a", ("Euler a", "Automatic")),
        ("Sampler: dpmpp_2m_sde_gpu, Scheduler: sgm_uniform", ("DPM++ 2M SDE", "SGM Uniform")),
        ("Sampler: dpmpp_2m_karras, Version: ComfyUI", ("DPM++ 2M", "Karras")),
        ("Sampler: euler_ancestral_ddim_uniform", ("Euler a", "DDIM")),
        ("Sampler: sample_dpmpp_2m, Scheduler: normal", ("DPM++ 2M", "Normal")),
        ("Sampler: Unheard of Karras", (None, "Karras")),
    ],
)
def test_schedule_type_that_is_not_written(line, expected):
    made = recipe_from_infotext(f"p\nSteps: 3, {line}, Seed: 1, CFG Scale: 5")
    settings = made.recipe["settings"]
    assert (settings.get("sampler"), settings["schedule_type"]) == expected
    assert settings["cfg_scale"] == 5  # whatever the capitals
    assert settings["rng"] == ("CPU" if "ComfyUI" in line else "NV")


def test_second_pass_of_an_old_picture_has_its_own_schedule():
    line = "Steps: 3, Sampler: DPM++ 2M Karras, Seed: 1, Hires upscale: 2"
    hires = recipe_from_infotext(f"p\n{line}, Hires sampler: Euler").recipe["settings"]["hires"]
    assert (hires["sampler"], hires["schedule_type"]) == ("Euler", "Automatic")
    hires = recipe_from_infotext(f"p\n{line}, Hires sampler: DPM2").recipe["settings"]["hires"]
    assert (hires["sampler"], hires["schedule_type"]) == ("DPM2", "Uniform")
    new = f"p\n{line}, Schedule type: Karras, Hires sampler: Euler"
    assert "schedule_type" not in recipe_from_infotext(new).recipe["settings"]["hires"]


@pytest.mark.parametrize("name", ["heunpp2", "res_multistep", "unheard_of_karras"])
def test_samplers_that_are_not_known_keep_their_names(name):
    assert sampler_and_schedule(name) == (name, "Automatic")


LEAKED = "Denoising strength: 0.4, Mask blur: 4, Inpaint area: Only masked, Masked area padding: 32"


def test_leak_of_adetailer_is_not_img2img(tmp_path):
    text = f"p\n{LINE}, {LEAKED}, ADetailer model: face.pt, ADetailer version: 24.1.2"
    image, notes = drawn(png(tmp_path / "a.png", parameters=text))
    assert image.img2img is None
    assert [note for note in notes if note.startswith("Denoising strength, Mask blur,")]
    assert len([note for note in notes if note.startswith("ADetailer: there is no such")]) == 1
    for other in (
        f"{LINE}, {LEAKED}, ADetailer model: face.pt, Init image hash: ab",
        f"{LINE}, {LEAKED}, ADetailer model: face.pt, ADetailer version: 24.4.2",
    ):
        assert "img2img" in recipe_from_infotext(f"p\n{other}").recipe["settings"]
    init = png(tmp_path / "init.png")
    given = f"settings.img2img.init_image={init}", f"settings.img2img.inpaint.mask={init}"
    image, _ = drawn(tmp_path / "a.png", *given)  # then it was img2img
    assert (image.img2img.denoising_strength, image.img2img.inpaint.mask_blur) == (0.4, 4)
    image, _ = drawn(png(tmp_path / "a.png", parameters=f"p\n{LINE}, {LEAKED}"))
    assert image.img2img is None  # its defaults without its keys
    for other in (LEAKED.replace("0.4", "0.5"), f"{LEAKED}, Version: limner 0.1.0"):
        assert "img2img" in recipe_from_infotext(f"p\n{LINE}, {other}").recipe["settings"]
    hires = recipe_from_infotext(f"p\n{LINE}, {LEAKED}, ADetailer model: x, Hires upscale: 2")
    assert hires.recipe["settings"]["hires"]["denoising_strength"] == 0.4
    assert "img2img" not in hires.recipe["settings"]


def test_notes_come_first_and_the_error_names_the_way_out(tmp_path, capsys):
    path = png(tmp_path / "a.png", parameters=f"p\n{LINE}, Denoising strength: 0.4, Bogus: 1")
    assert main([str(path)]) == 2
    *notes, error = capsys.readouterr().err.splitlines()
    assert any("Bogus: 1: not known here" in note for note in notes)
    assert "settings.img2img.init_image: must be given" in error
    assert "settings.img2img=null" in error
    assert drawn(path, "settings.img2img=null")[0].img2img is None
    png(path, parameters="p\nSteps: 0, Seed: 1, Size: 64x32, Model: picto, RNG: NV")
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert "settings.steps: must be at least 1, got 0" in error
    assert "(settings.steps=… replaces it)" in error


def test_text_without_settings_is_reported(tmp_path):
    image, notes = drawn(png(tmp_path / "a.png", parameters="{red|blue} apple, (a:1.2)"))
    assert image.prompt == "{red|blue} apple, (a:1.2)"
    assert notes[0].startswith("infotext has no settings, that is no line that begins with `Steps")


def test_upscaler_that_is_not_at_hand_is_left_out(tmp_path):
    text = f"p\n{LINE}, RNG: CPU, Denoising strength: 0.3, Hires upscaler: "
    image, notes = drawn(png(tmp_path / "a.png", parameters=f"{text}4x-UltraSharp"))
    assert (image.hires.upscaler, image.hires.denoising_strength) == ("Latent", 0.3)
    assert len(notes) == 1
    assert "Nearest" in notes[0] and "SwinIR" not in notes[0]
    image, notes = drawn(png(tmp_path / "a.png", parameters=f"{text}Lanczos"))
    assert (image.hires.upscaler, notes) == ("Lanczos", [])
    with pytest.raises(InputError, match="there is no upscaler 'zzz'; known are") as caught:
        check_upscaler("zzz")
    assert "ESRGAN" not in str(caught.value)
    assert "Lanczos" in str(caught.value)


def safetensors(path, key, metadata=None):
    """A file with one empty tensor, and its SHA-256."""
    header = {key: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}
    text = json.dumps(header | {"__metadata__": metadata or {}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + path.name.encode())
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_are_found_by_the_hashes_of_civitai(tmp_path):
    lora = safetensors(tmp_path / "ink.safetensors", "lora_unet_x")
    model = safetensors(tmp_path / "base.safetensors", "model.diffusion_model.x")
    hashes = json.dumps({"model": model[:10].upper(), "lora:pen": lora[:10], "embed:e": "0" * 10})
    made = recipe_from_infotext(f"a <lora:pen:0.5>\nSteps: 2, Seed: 1, CFG scale: 1, Hashes: "
                                f"{hashes}", [tmp_path])  # fmt: skip
    assert made.recipe["images"]["picture"]["prompt"] == "a <lora:ink:0.5>"
    assert made.recipe["base_model"]["path"] == str(tmp_path / "base.safetensors")
    assert "<lora:pen:0.5>: is called ink here" in made.notes
    assert [note for note in made.notes if note.startswith("embedding e: there is no such file")]


def test_loras_that_only_civitai_lists_are_called(tmp_path):
    safetensors(tmp_path / "ink.safetensors", "lora_unet_x")
    entries = [
        {"type": "checkpoint", "modelVersionId": 1, "modelName": "gone"},
        {"type": "lora", "weight": 0.6, "modelName": "ink"},
        {"weight": 1, "air": "urn:air:sd1:lora:civitai:1@2", "modelName": "pen: (x)"},
    ]
    line = f"{LINE}, Civitai resources: {json.dumps(entries)}, Civitai metadata: {{}}"
    made = recipe_from_infotext(f"a cat\n{line}", [tmp_path])
    assert made.recipe["images"]["picture"]["prompt"] == "a cat <lora:ink:0.6> "
    assert [note for note in made.notes if note.startswith("<lora:pen  (x):1>: there is no such")]
    called = recipe_from_infotext(f"a <lora:ink:1> cat\n{line}", [tmp_path])
    assert called.recipe["images"]["picture"]["prompt"] == "a <lora:ink:1> cat"
    for weight in ('"heavy"', "NaN", "1e400", "true", "null"):
        entry = f'[{{"type": "lora", "weight": {weight}, "modelName": "ink"}}]'
        made = recipe_from_infotext(f"a cat\n{LINE}, Civitai resources: {entry}", [tmp_path])
        assert made.recipe["images"]["picture"]["prompt"] == "a cat <lora:ink:1>"
        assert [note for note in made.notes if "is no strength; 1 is taken" in note]
    broken = recipe_from_infotext(f'p\n{LINE}, Civitai resources: "[1,", Hashes: "{{}}"')
    assert [note for note in broken.notes if note.startswith("Civitai resources: is not JSON")]


SWARM = {
    "sui_image_params": {
        "prompt": "red apple, line icon", "negativeprompt": "blurry", "model": "a/b/sd_xl",
        "seed": 1234, "steps": 20, "cfgscale": 7.0, "width": 1024, "height": 768,
        "sampler": "dpmpp_2m", "scheduler": "karras", "loras": ["x/ink"], "loraweights": ["0.5"],
        "swarm_version": "0.9.2.2",
    },
    "sui_extra_data": {"date": "2024-09-09"},
}  # fmt: skip
FOOOCUS = {
    "prompt": "red apple", "negative_prompt": "blurry", "full_prompt": "a: b, c: d, e: f",
    "base_model": "juggernaut.safetensors",
    "base_model_hash": "d91d35736d", "guidance_scale": 4, "sampler": "dpmpp_2m_sde_gpu",
    "scheduler": "karras", "seed": "7", "steps": 30, "resolution": "(1152, 896)", "sharpness": 2,
    "loras": [["ink.safetensors", 0.5, "ab"]], "clip_skip": 2, "vae": "Default (model)",
    "styles": ["Fooocus V2"], "version": "Fooocus v2.5.5",
}  # fmt: skip
EASY = {
    "prompt": "red apple", "negative_prompt": "blurry", "seed": 7, "num_inference_steps": 25,
    "guidance_scale": 7.5, "sampler_name": "euler_a", "width": 512, "height": 768,
    "use_stable_diffusion_model": "sd-v1-5", "use_vae_model": "None", "clip_skip": True,
    "use_lora_model": ["ink"], "lora_alpha": [0.5], "tiling": "none",
}  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        ({"parameters": json.dumps(SWARM)},
         "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1234, "
         "Size: 1024x768, Model: sd_xl, RNG: CPU, Version: SwarmUI 0.9.2.2"),
        ({"parameters": json.dumps(FOOOCUS, indent=2), "fooocus_scheme": "fooocus"},
         "Steps: 30, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 4, Seed: 7, "
         "Size: 1152x896, Model hash: d91d35736d, Model: juggernaut, Clip skip: 2, RNG: CPU, "
         "Fooocus styles: Fooocus V2, Version: Fooocus v2.5.5"),
        ({key: str(value) for key, value in EASY.items()},
         "Steps: 25, Sampler: Euler a, CFG scale: 7.5, Seed: 7, Size: 512x768, Model: sd-v1-5, "
         "Clip skip: 2, RNG: CPU, Version: Easy Diffusion"),
    ],
)  # fmt: skip
def test_other_programs_are_translated(tmp_path, texts, line):
    infotext = read_infotext(png(tmp_path / "a.png", **texts))
    prompt = "red apple, line icon" if "SwarmUI" in line else "red apple"
    assert infotext == f"{prompt} <lora:ink:0.5>\nNegative prompt: blurry\n{line}"
    image, _ = drawn(tmp_path / "a.png")
    assert image.prompt.strip() == prompt  # the LoRA is not here


@pytest.mark.parametrize("weights", [{}, {"loraweights": []}, {"loraweights": ["1"]}])
def test_swarm_loras_without_a_weight_have_1(tmp_path, weights):
    settings = SWARM["sui_image_params"] | {"loras": ["x/ink", "pen"]}
    del settings["loraweights"]
    text = json.dumps({"sui_image_params": settings | weights})
    infotext = read_infotext(png(tmp_path / "a.png", parameters=text)) or ""
    assert infotext.splitlines()[0] == "red apple, line icon <lora:ink:1> <lora:pen:1>"


def test_easy_diffusion_in_a_jpeg(tmp_path):
    labels = {"Prompt": "cat", "Steps": 3, "Guidance Scale": 2, "Sampler": "ddim", "Seed": 1,
              "Negative Prompt": "", "LoRA model": None}  # fmt: skip
    save_picture(tmp_path / "a.jpg", Image.new("RGB", (64, 32)), json.dumps(labels))
    found = parse_infotext(read_infotext(tmp_path / "a.jpg") or "")
    assert (found.prompt, found.parameters["Sampler"]) == ("cat", "DDIM")
    assert found.parameters["Size"] == "64x32"


def novel_ai(path, **changes):
    comment = {"steps": 28, "sampler": "k_dpmpp_2m", "scale": 11, "seed": 9, "uc": "bad"} | changes
    return png(path, Software="NovelAI", Description="a cat", Comment=json.dumps(comment))


def test_novel_ai(tmp_path):
    expected = (
        "a cat\nNegative prompt: bad\nSteps: 28, Sampler: DPM++ 2M, CFG scale: 11, Seed: 9, "
        "Size: 64x32, Clip skip: 2, ENSD: 31337"
    )
    assert read_infotext(novel_ai(tmp_path / "a.png")) == expected
    later = read_infotext(novel_ai(tmp_path / "a.png", noise_schedule="native"))
    assert later == f"{expected}, Schedule type: Uniform"
    png(tmp_path / "a.png", Software="NovelAI", Description="a cat", Comment='{"steps": 28}')
    with pytest.raises(InputError, match=r"a\.png: NovelAI's texts lack 'scale'|lack 'sampler'"):
        read_infotext(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"sui_image_params": 3 4}', "damaged JSON, at line 1, column 24"),
        ('{"sui_image_params": {"steps": 3}}', "sui_image_params: expected SwarmUI's settings"),
        ('{"color": "red", "size": 3}', r"a program that is not known here \(with the keys color"),
        ('{"a": ' + '{"a": ' * 3000, "its text is .*JSON"),
    ],
)
def test_other_json_is_not_drawn_as_a_prompt(tmp_path, text, message):
    path = png(tmp_path / "a.png", parameters=text)
    with pytest.raises(InputError, match=f"{path}: .*{message}"):
        recipe_from_picture(path)


def test_text_of_postprocessing_draws_nothing(tmp_path):
    text = "Postprocess upscale by: 4, Postprocess upscaler: Lanczos"
    wanted = "says only how it was processed after it was drawn"
    for texts in ({"extras": text}, {"postprocessing": text}, {"parameters": text}):
        with pytest.raises(InputError, match=wanted):
            recipe_from_picture(png(tmp_path / "a.png", **texts))
    save_picture(tmp_path / "a.jpg", Image.new("RGB", (4, 4)), f"{text}, GFPGAN visibility: 1")
    with pytest.raises(InputError, match=wanted):
        recipe_from_picture(tmp_path / "a.jpg")
    both = png(tmp_path / "a.png", parameters=f"p\n{LINE}, {text}", extras=text)
    assert drawn(both)[0].seed == 5


def test_graphs_of_comfyui(tmp_path):
    """Read by sd-parsers; `prompt` alone is not its mark."""
    path = png(tmp_path / "a.png", prompt="a cat", seed="3")
    with pytest.raises(InputError, match="does not say how it was drawn"):
        recipe_from_picture(path)
    pytest.importorskip("sd_parsers")
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd/v1.ckpt"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad", "clip": ["1", 1]}},
        "4": {"class_type": "KSampler", "inputs": {
            "seed": 7, "steps": 20, "cfg": 8, "sampler_name": "dpmpp_2m_sde_gpu",
            "scheduler": "karras", "denoise": 1, "model": ["1", 0], "positive": ["2", 0],
            "negative": ["3", 0]}},
    }  # fmt: skip
    links = [[1, 1, 0, 4, 0, "MODEL"], [2, 2, 0, 4, 1, "CONDITIONING"],
             [3, 3, 0, 4, 2, "CONDITIONING"]]  # fmt: skip
    png(path, prompt=json.dumps(graph), workflow=json.dumps({"links": links}))
    image, _ = drawn(path)
    assert (image.prompt, image.negative_prompt, image.seed) == ("a cat", "bad", 7)
    assert (image.sampler, image.schedule_type) == ("DPM++ 2M SDE", "Karras")


def test_beside_file_with_settings_above_its_end(tmp_path):
    Image.new("RGB", (64, 32)).save(tmp_path / "a.png")
    Path(tmp_path / "a.txt").write_text(f"a cat\n{LINE}\nTemplate: a\nb", "utf-8")
    assert drawn(tmp_path / "a.png")[0].prompt == "a cat"
