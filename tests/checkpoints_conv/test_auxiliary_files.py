"""What travels with a model's weights: files of known names, and no link to somewhere else."""

import pytest

from megaladder.checkpoints_conv.reader import auxiliary_files
from megaladder.errors import ModelError

KNOWN = [
    "LICENSE",
    "LICENSE-MODEL.txt",
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "configuration_internlm2.py",
    "generation_config.json",
    "merges.txt",
    "modeling_internlm2.py",
    "qwen.tiktoken",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tokenizer_config.json",
    "vocab.json",
]
OTHERS = ["secrets.json", "id_rsa.txt", "run.py", "model.safetensors", ".env", "notes.txt"]
OTHERS += ["model.safetensors.index.json", "trainer_state.json", "optimizer.pt", "setup.py"]


def names(folder) -> list[str]:
    return [path.name for path in auxiliary_files(folder)]


def test_files_of_known_names_travel_and_no_others(tmp_path):
    for name in KNOWN + OTHERS:
        (tmp_path / name).write_text("x")
    (tmp_path / "tokenizer_config.json.d").mkdir()
    assert sorted(names(tmp_path)) == sorted(KNOWN)
    assert names(tmp_path)[-1] == "config.json"


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    folder, elsewhere = tmp_path / "model", tmp_path / "shadow"
    folder.mkdir()
    elsewhere.write_text("root:x")
    (folder / "tokenizer.json").symlink_to(elsewhere)
    with pytest.raises(ModelError, match=r"tokenizer.json: is a link to .*shadow, outside"):
        names(folder)


def test_links_inside_the_folder_and_into_the_hub_cache_are_followed(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "d1").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/d1")
    (snapshot / "vocab.json").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("vocab.json")
    assert names(snapshot) == ["tokenizer.json", "vocab.json", "config.json"]
    linked = tmp_path / "linked"
    linked.symlink_to(snapshot)  # the folder itself may be a link
    assert names(linked) == names(snapshot)
