"""Offline conversion: exact, streaming, atomic; `verify` finds one changed element; bad folders are
refused by name."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints_conv.conv_models import CASES, differences, make_hf_folder
from clean_fork import run_in_fork
from model_cases import read_all, rewrite_single

from megaladder.checkpoint import store
from megaladder.checkpoints_conv import writer as writer_module
from megaladder.checkpoints_conv.dist_checkpoint import DistCheckpointReader, DistCheckpointWriter
from megaladder.checkpoints_conv.hf_to_megatron import convert_to_megatron
from megaladder.checkpoints_conv.megatron_to_hf import convert_to_hf
from megaladder.checkpoints_conv.reader import HFReader
from megaladder.checkpoints_conv.verbs import run_hf_to_megatron, run_megatron_to_hf, run_verify
from megaladder.checkpoints_conv.writer import HFWriter, TensorSpec, WriteOptions
from megaladder.config.verbs.convert import HfToMegatronConfig, MegatronToHfConfig, VerifyConfig
from megaladder.console.voice import Task, Voice
from megaladder.errors import CheckpointError, ConversionError, ModelError, StorageError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CASE and megatron-CASE for every case."""
    root = tmp_path_factory.mktemp("offline")
    for case in CASES:
        make_hf_folder(case, root / case)
        convert_to_megatron(root / case, root / f"megatron-{case}")
    return root


def die_after(num_calls: int) -> Callable[[int], None]:
    """A progress callback that kills its process with SIGKILL."""
    calls = 0

    def on_bytes(num_bytes: int) -> None:
        nonlocal calls
        calls += 1
        if calls == num_calls:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_bytes


@pytest.mark.parametrize("case", CASES)
def test_round_trip_keeps_every_bit_and_every_file(
    folders: Path, case: str, tmp_path: Path
) -> None:
    convert_to_hf(
        folders / f"megatron-{case}", tmp_path / "hf", WriteOptions(max_shard_bytes=100_000)
    )
    assert differences(read_all(tmp_path / "hf"), read_all(folders / case)) == []
    for name in (
        "config.json",
        "tokenizer_config.json",
        "merges.txt",
        "LICENSE",
        "generation_config.json",
    ):
        assert (tmp_path / "hf" / name).read_bytes() == (folders / case / name).read_bytes()
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        t.nbytes for t in read_all(folders / case).values()
    )
    assert (
        max(p.stat().st_size for p in (tmp_path / "hf").glob("*.safetensors"))
        < 110_000 + 4 * 1031 * 64
    )  # one tensor is never split


def test_transformers_opens_the_result(folders: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    convert_to_hf(
        folders / "megatron-qwen3", tmp_path / "hf", WriteOptions(max_shard_bytes=100_000)
    )
    ids = torch.arange(20)[None]
    models = [
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (folders / "qwen3", tmp_path / "hf")
    ]
    with torch.no_grad():
        assert torch.equal(*(model(ids).logits for model in models))


def test_dtype_override_is_told_to_the_config(folders: Path, tmp_path: Path) -> None:
    run_hf_to_megatron(
        HfToMegatronConfig(hf=folders / "llama-llama3", out=tmp_path / "m", dtype="bf16")
    )
    run_megatron_to_hf(MegatronToHfConfig(megatron=tmp_path / "m", out=tmp_path / "hf"))
    want = {name: tensor.bfloat16() for name, tensor in read_all(folders / "llama-llama3").items()}
    assert differences(read_all(tmp_path / "hf"), want) == []
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"


def test_vocabulary_padded_for_another_tp_is_trimmed(folders: Path, tmp_path: Path) -> None:
    """TP 3 stores 528 rows of a vocabulary of 517; the rows past it may hold anything."""
    source, want = (
        DistCheckpointReader(folders / "megatron-llama-llama3"),
        read_all(folders / "llama-llama3"),
    )
    (tmp_path / "m").mkdir()
    shutil.copytree(folders / "megatron-llama-llama3" / "hf", tmp_path / "m" / "hf")
    writer = DistCheckpointWriter(tmp_path / "m")
    for key, stored in source.tensors.items():
        tensor = source.read(key, tuple(stored.size))
        if tensor.shape[0] == 520:
            tensor = torch.cat([tensor[:517], torch.full((11, 64), 9.0)])
        writer.add_tensor(key, tensor)
    writer.commit({})
    convert_to_hf(tmp_path / "m", tmp_path / "hf")
    assert differences(read_all(tmp_path / "hf"), want) == []


@pytest.mark.parametrize("case", [case for case in CASES if case != "internlm2"])
def test_verify_tensors_and_logits(
    folders: Path, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    config = VerifyConfig(
        hf=folders / case, megatron=folders / f"megatron-{case}", json_file=report
    )
    assert run_verify(config) == 0
    found = json.loads(report.read_text())
    assert found["equal"] and found["tensors"]["differences"] == []
    assert found["logits"]["max_difference"] <= 1e-4 * max(1.0, found["logits"]["max_logit"])
    assert "bit-identical" in capsys.readouterr().out


def test_what_is_told_while_a_verb_works_ends_at_all_of_its_bytes(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(iter(CASES))
    told: list[Task] = []
    close = Voice.close
    monkeypatch.setattr(Voice, "close", lambda voice, task: (told.append(task), close(voice, task)))
    run_hf_to_megatron(HfToMegatronConfig(hf=folders / case, out=tmp_path / "out"))
    run_verify(VerifyConfig(hf=folders / case, megatron=tmp_path / "out", logits=False))
    assert [task.what for task in told] == ["hf → megatron", "verify"]
    # a bias that only Megatron has is written too
    done, total = [task.done for task in told], [task.total for task in told]
    assert done == pytest.approx(total, rel=0.01) and done[1] == pytest.approx(total[1])


def test_verify_says_where_transformers_has_no_class(folders: Path) -> None:
    paths = {"hf": folders / "internlm2", "megatron": folders / "megatron-internlm2"}
    with pytest.raises(ConversionError, match=r"InternLM2 / 2\.5 .*fix: --no-logits"):
        run_verify(VerifyConfig(**paths))
    assert run_verify(VerifyConfig(**paths, logits=False)) == 0


def test_verify_lists_one_changed_element(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = read_all(folders / "qwen3-tied")
    tensors["model.layers.2.mlp.up_proj.weight"][5, 7] += 0.25
    shutil.copytree(folders / "qwen3-tied", tmp_path / "hf")
    rewrite_single(tmp_path / "hf", tensors)
    assert (
        run_verify(VerifyConfig(hf=tmp_path / "hf", megatron=folders / "megatron-qwen3-tied")) == 2
    )
    printed = capsys.readouterr()
    assert (
        "model.layers.2.mlp.up_proj.weight: 1 of 7,168 elements differ, largest |Δ| 0.25"
        in printed.out
    )
    assert "differ" in printed.err


def test_verify_against_another_model_says_so(folders: Path) -> None:
    config = VerifyConfig(
        hf=folders / "qwen3", megatron=folders / "megatron-llama-llama3", logits=False
    )
    assert run_verify(config) == 2


@pytest.mark.parametrize("num_calls", [1, 9, 25])
def test_killed_conversions_never_look_complete(
    folders: Path, tmp_path: Path, num_calls: int
) -> None:
    """SIGKILL after some tensors; what is left is refused by every reader, and the same command
    then succeeds without --force."""
    megatron, hf = tmp_path / "m", tmp_path / "hf"
    assert (
        run_in_fork(
            lambda: convert_to_megatron(folders / "qwen3", megatron, on_bytes=die_after(num_calls))
        )
        == -signal.SIGKILL
    )
    with pytest.raises(CheckpointError, match="cut short"):
        DistCheckpointReader(megatron)
    convert_to_megatron(folders / "qwen3", megatron)
    options = WriteOptions(max_shard_bytes=100_000)
    assert (
        run_in_fork(convert_to_hf, megatron, hf, options, die_after(num_calls)) == -signal.SIGKILL
    )
    assert not (hf / "config.json").exists() and not (hf / "model.safetensors.index.json").exists()
    with pytest.raises(ModelError, match="did not finish"):
        HFReader(hf)
    convert_to_hf(megatron, hf, options)
    assert differences(read_all(hf), read_all(folders / "qwen3")) == []


def test_replacing_a_model_is_never_half_done(folders: Path, tmp_path: Path) -> None:
    """With --force over a complete folder, a kill leaves no complete folder, neither old nor
    mixed."""
    out = tmp_path / "m"
    convert_to_megatron(folders / "qwen3", out)
    assert (
        run_in_fork(
            lambda: convert_to_megatron(
                folders / "llama-llama3", out, force=True, on_bytes=die_after(3)
            )
        )
        == -signal.SIGKILL
    )
    assert not (out / store.MARKER).exists()


def test_a_full_folder_is_refused_and_forced(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    for convert in (
        lambda force: convert_to_megatron(folders / "qwen3", tmp_path, force=force),
        lambda force: convert_to_hf(
            folders / "megatron-qwen3", tmp_path, WriteOptions(force=force)
        ),
    ):
        with pytest.raises(ConversionError, match=r"not empty \(.*--force"):
            convert(False)
        convert(True)
    assert (tmp_path / "notes.txt").read_text() == "keep me"


def test_too_little_disk_is_found_before_writing(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(writer_module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StorageError, match=r"needs .* GB, 0\.00 GB free; fix"):
        convert_to_megatron(folders / "qwen3", tmp_path / "m")


def test_no_room_in_the_middle_is_an_error_with_the_way_out(folders: Path, tmp_path: Path) -> None:
    """A file-size limit stands in for a full disk: both writers stop with our error and leave
    nothing that looks complete."""
    import resource

    def limited(action: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
            action()

        return run

    assert (
        run_in_fork(limited(lambda: convert_to_hf(folders / "megatron-qwen3", tmp_path / "hf")))
        == 3
    )
    assert not (tmp_path / "hf" / "config.json").exists()
    assert run_in_fork(limited(lambda: convert_to_megatron(folders / "qwen3", tmp_path / "m"))) == 3
    assert not (tmp_path / "m" / store.MARKER).exists()


def test_every_changed_file_of_an_export_is_named(folders: Path, tmp_path: Path) -> None:
    """By whoever loads it, and by `sha256sum -c`."""
    convert_to_hf(folders / "megatron-qwen3", tmp_path / "hf")
    names = sorted(path.name for path in (tmp_path / "hf").iterdir() if path.name != "SHA256SUMS")
    assert "config.json" in names and "model.safetensors" in names
    check = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=tmp_path / "hf", check=False).returncode == 0
    for name in names:
        good = (tmp_path / "hf" / name).read_bytes()
        (tmp_path / "hf" / name).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(ModelError, match=rf"{re.escape(name)}: its content has changed"):
            convert_to_megatron(tmp_path / "hf", tmp_path / "back")
        (tmp_path / "hf" / name).unlink()
        with pytest.raises(ModelError, match=rf"{re.escape(name)}: missing"):
            convert_to_megatron(tmp_path / "hf", tmp_path / "back")
        (tmp_path / "hf" / name).write_bytes(good)
    convert_to_megatron(tmp_path / "hf", tmp_path / "back")


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_every_damaged_file_of_a_checkpoint_is_named(
    folders: Path, tmp_path: Path, damage: str
) -> None:
    source = folders / "megatron-qwen2-window"
    names = sorted(
        str(p.relative_to(source))
        for p in source.rglob("*")
        if p.is_file() and p.name not in (store.MARKER, store.INTEGRITY)
    )
    assert len(names) >= 8
    for i, name in enumerate(names):
        copy = tmp_path / str(i)
        shutil.copytree(source, copy)
        data = bytearray((copy / name).read_bytes())
        if damage == "flip":
            data[len(data) // 2] ^= 1
        else:
            del data[-1:]
        (copy / name).write_bytes(bytes(data))
        with pytest.raises(CheckpointError) as caught:
            convert_to_hf(copy, tmp_path / f"hf-{i}")
        assert name in str(caught.value), (name, str(caught.value))
        assert not (tmp_path / f"hf-{i}").exists()


def _truncated(folder: Path) -> str:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-7])
    return shard.name


def _header_cut(folder: Path) -> str:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:5])
    return shard.name


def _header_garbage(folder: Path) -> str:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(b"\xff" * 8 + shard.read_bytes()[8:])
    return shard.name


def _missing_shard(folder: Path) -> str:
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    return shard.name


def _absent_tensor(folder: Path) -> str:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.layers.9.extra.weight"] = sorted(folder.glob("*.safetensors"))[
        0
    ].name
    path.write_text(json.dumps(index))
    return "model.layers.9.extra.weight"


def _unlisted_tensor(folder: Path) -> str:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(index))
    return "model.norm.weight"


def test_an_index_beside_a_single_file_is_a_leftover(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "qwen3", tmp_path / "hf")
    tensors = read_all(folders / "qwen3")
    index = (tmp_path / "hf" / "model.safetensors.index.json").read_bytes()
    rewrite_single(tmp_path / "hf", tensors)
    (tmp_path / "hf" / "model.safetensors.index.json").write_bytes(index)
    with HFReader(tmp_path / "hf") as reader:
        assert {name: reader.read(name).shape for name in tensors} == {
            name: tensor.shape for name, tensor in tensors.items()
        }


def _broken_index(folder: Path) -> str:
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text()[:-20])
    return path.name


def _broken_config(folder: Path) -> str:
    (folder / "config.json").write_text("{")
    return "config.json"


def _outside_index(folder: Path) -> str:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "../../other.safetensors"}}))
    return path.name


@pytest.mark.parametrize(
    "damage",
    [
        _truncated,
        _header_cut,
        _header_garbage,
        _missing_shard,
        _absent_tensor,
        _unlisted_tensor,
        _broken_index,
        _broken_config,
        _outside_index,
    ],
)
def test_every_damaged_hf_folder_is_refused_by_name(
    folders: Path, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    shutil.copytree(folders / "qwen3", tmp_path / "hf")
    culprit = damage(tmp_path / "hf")
    with pytest.raises(ModelError) as caught:
        convert_to_megatron(tmp_path / "hf", tmp_path / "m")
    assert culprit in str(caught.value) and "fix" in str(caught.value)
    assert not (tmp_path / "m").exists()


def test_folders_without_weights_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such folder; fix.*hf download"):
        HFReader(tmp_path / "absent")
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        HFReader(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="unpickling runs code"):
        HFReader(tmp_path)


def test_run_folders_point_to_their_newest_step(folders: Path, tmp_path: Path) -> None:
    for step in (3, 20):
        shutil.copytree(
            folders / "megatron-qwen2-window", tmp_path / "checkpoints" / f"step_{step}"
        )
    with pytest.raises(
        CheckpointError, match=r"checkpoints of a run; fix: name one, such as .*step_20"
    ):
        DistCheckpointReader(tmp_path)


class _Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch executed",))


def test_a_foreign_checkpoint_cannot_run_code(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folders / "megatron-qwen2-window", tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m" / ".metadata").write_bytes(pickle.dumps(_Malicious()))
    with pytest.raises(CheckpointError, match=r"asks for posix\.system"):
        DistCheckpointReader(tmp_path / "m")
    assert not (tmp_path / "executed").exists()


def test_left_over_and_missing_keys_of_a_checkpoint_are_listed(
    folders: Path, tmp_path: Path
) -> None:
    source = DistCheckpointReader(folders / "megatron-qwen2-window")
    (tmp_path / "m").mkdir()
    shutil.copytree(folders / "megatron-qwen2-window" / "hf", tmp_path / "m" / "hf")
    writer = DistCheckpointWriter(tmp_path / "m")
    for key, stored in source.tensors.items():
        if key != "decoder.final_layernorm.weight":
            writer.add_tensor(key, source.read(key, tuple(stored.size)))
    writer.add_tensor("decoder.layers.mlp.router.weight", torch.zeros(4, 2))
    writer.add_tensor("optimizer.state.exp_avg.decoder.final_layernorm.weight", torch.zeros(64))
    writer.commit({})
    with pytest.raises(ConversionError) as caught:
        convert_to_hf(tmp_path / "m", tmp_path / "hf")
    text = str(caught.value)
    assert "missing (1)" in text and "decoder.final_layernorm.weight" in text
    assert "unknown (1)" in text and "decoder.layers.mlp.router.weight" in text
    assert "optimizer" not in text


def test_writer_accounts_for_every_tensor(folders: Path, tmp_path: Path) -> None:
    specs = [
        TensorSpec("a", (3,), torch.bfloat16),
        TensorSpec("b", (2, 2), torch.float32),
        TensorSpec("c", (1,), torch.int64),
    ]
    values = {
        "a": torch.tensor([1.0, 2.0, 3.0]).bfloat16(),
        "b": torch.eye(2),
        "c": torch.tensor([7]),
    }
    with HFWriter(tmp_path / "x", specs) as writer:
        writer.write("c", values["c"])
        with pytest.raises(ConversionError, match="c was written twice"):
            writer.write("c", values["c"])
        with pytest.raises(ConversionError, match="d was not announced"):
            writer.write("d", values["c"])
        with pytest.raises(ConversionError, match=r"a has shape \(2,\), announced \(3,\)"):
            writer.write("a", values["a"][:2])
        writer.write("a", values["a"])
        with pytest.raises(ConversionError, match=r"1 tensors were never written, e\.g\. b"):
            writer.commit(folders / "qwen3")
        writer.write("b", values["b"])
        writer.commit(folders / "qwen3")
    # odd sizes and mixed dtypes: every tensor aligned
    assert differences(read_all(tmp_path / "x"), values) == []
    assert not (tmp_path / "x" / ".incomplete").exists()


def test_mixed_dtypes_are_not_rounded_silently(folders: Path, tmp_path: Path) -> None:
    tensors = read_all(folders / "llama-llama3")
    tensors["model.layers.1.self_attn.k_proj.weight"] = tensors[
        "model.layers.1.self_attn.k_proj.weight"
    ].half()
    shutil.copytree(folders / "llama-llama3", tmp_path / "hf")
    rewrite_single(tmp_path / "hf", tensors)
    with pytest.raises(ConversionError, match=r"different dtypes; fix: --dtype[\s\S]*k_proj"):
        convert_to_megatron(tmp_path / "hf", tmp_path / "m")
    convert_to_megatron(tmp_path / "hf", tmp_path / "m", dtype=torch.float32)


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """64 MB in 30 layers: both directions stay within a few tensors of 1 MiB each (anonymous memory
    of this process)."""
    from megaladder.tools.bench_convert import anonymous_bytes, write_random_model

    sizes = {
        "model_type": "qwen3",
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 512,
        "num_hidden_layers": 30,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    num_bytes = write_random_model(tmp_path / "hf", sizes, 0)
    assert num_bytes > 55e6
    seen: list[int] = []
    steps = (
        lambda: convert_to_megatron(
            tmp_path / "hf", tmp_path / "m", on_bytes=lambda n: seen.append(anonymous_bytes())
        ),
        lambda: convert_to_hf(
            tmp_path / "m", tmp_path / "back", on_bytes=lambda n: seen.append(anonymous_bytes())
        ),
    )
    for step in steps:
        seen.clear()
        step()
        assert max(seen) - seen[0] < 12e6, (max(seen) - seen[0], num_bytes)
    assert differences(read_all(tmp_path / "back"), read_all(tmp_path / "hf")) == []
