"""`tranche cache`: a model folder onto a volume: whole, proven, or not there at all."""
import contextlib
import fcntl
import hashlib
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import time

import pytest

NAMES = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
         "model.safetensors"}
MANIFEST = "tranche-cache.json"


def sha(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def cached(tranche, source, dest, code=0, **more):
    done = tranche("cache", source, dest, **more)
    assert done.returncode == code, (done.returncode, done.stderr.decode())
    return done.stdout.decode(), done.stderr.decode()


def whole(dest, source, names=frozenset(NAMES)):
    """The files, their bytes, the manifest, and nothing beside them."""
    assert {p.name for p in dest.iterdir()} == names | {MANIFEST}
    listed = json.loads((dest / MANIFEST).read_text())
    assert [f["name"] for f in listed["files"]] == sorted(names)
    for f in listed["files"]:
        assert f["sha256"] == sha(dest / f["name"]) == sha(source / f["name"]), f["name"]
        assert f["bytes"] == (dest / f["name"]).stat().st_size
    lines = "".join(f"{f['name']} {f['sha256']}\n" for f in listed["files"])
    assert listed["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert not dest.with_name(dest.name + ".partial").exists()
    assert not dest.with_name(dest.name + ".lock").exists()


def read_weights(path):
    data = path.read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:8 + n]), data[8 + n:]


def write_weights(path, tensors, extra_bytes=0):
    """tensors: {name: (dtype, shape, bytes)}; behind them a tensor of so many zeros that nothing needs."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    if extra_bytes:
        header["extra.zeros"] = {"dtype": "U8", "shape": [extra_bytes], "data_offsets": [at, at + extra_bytes]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(d for _, _, d in tensors.values()))
        f.truncate(8 + len(text) + at + extra_bytes)


def tensors_of(path):
    header, data = read_weights(path)
    return {name: (t["dtype"], t["shape"], data[slice(*t["data_offsets"])])
            for name, t in header.items() if name != "__metadata__"}


@pytest.fixture
def sharded(model_copy):
    every = tensors_of(model_copy / "model.safetensors")
    (model_copy / "model.safetensors").unlink()
    names = sorted(every)
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for part, held in parts.items():
        write_weights(model_copy / part, {n: every[n] for n in held})
    (model_copy / "model.safetensors.index.json").write_text(json.dumps(
        {"metadata": {}, "weight_map": {n: part for part, held in parts.items() for n in held}}))
    return model_copy


@pytest.fixture
def large(model_copy):
    """250 MB, so that there is a middle to be killed in; sparse, it costs no room here."""
    path = model_copy / "model.safetensors"
    write_weights(path, tensors_of(path), 250_000_000)
    return model_copy


def test_a_copy_holds_what_the_model_opens_and_no_more(tranche, tiny_model, tmp_path):
    (tmp_path / "volume").mkdir()
    dest = tmp_path / "volume/model"
    out, err = cached(tranche, tiny_model, f"{dest}/")
    whole(dest, tiny_model)
    assert out.startswith(f"cached {dest} files=6 bytes=") and "event=model_headers_read" in err
    before = {p.name: p.stat() for p in dest.iterdir()}
    again, _ = cached(tranche, tiny_model, dest)
    assert again == out.replace("cached", "found", 1)
    for p in dest.iterdir():
        assert p.stat().st_mtime_ns == before[p.name].st_mtime_ns and p.stat().st_ino == before[p.name].st_ino
    done = tranche("tokenize", "--model", dest, stdin='"a b"\n')
    assert done.returncode == 0 and done.stdout == tranche("tokenize", "--model", tiny_model, stdin='"a b"\n').stdout


def test_an_empty_folder_is_no_model(tranche, tiny_model, tmp_path):
    (tmp_path / "model-here").mkdir()
    cached(tranche, tiny_model, "model-here")
    whole(tmp_path / "model-here", tiny_model)


def test_shards_and_a_missing_one(tranche, sharded, tmp_path):
    (sharded / "pytorch_model.bin").write_bytes(b"old")
    (sharded / "consolidated.safetensors").write_bytes(b"of another tool")
    names = NAMES - {"model.safetensors"} | {p.name for p in sharded.glob("model*")}
    cached(tranche, sharded, "copy")
    whole(tmp_path / "copy", sharded, names)
    (sharded / "model-00002-of-00002.safetensors").unlink()
    _, err = cached(tranche, sharded, "other", code=65)
    assert "model-00002-of-00002.safetensors" in err and "No such file" in err
    assert not (tmp_path / "other").exists() and not (tmp_path / "other.partial").exists()


def test_a_hub_cache_is_held_against_the_names_of_its_blobs(tranche, tiny_model, tmp_path):
    hub = tmp_path / "hub/models--org--tiny"
    snapshot = hub / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (hub / "blobs").mkdir()
    (hub / "refs").mkdir()
    (hub / "refs/main").write_text("c" * 40)
    for name in NAMES:
        blob = sha(tiny_model / name) if name == "model.safetensors" else hashlib.sha1(name.encode()).hexdigest()
        shutil.copy(tiny_model / name, hub / "blobs" / blob)
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    cached(tranche, hub, "copy")
    whole(tmp_path / "copy", tiny_model)
    assert not any(p.is_symlink() for p in (tmp_path / "copy").iterdir())
    assert cached(tranche, snapshot, "copy")[0].startswith("found ")
    named = sha(tiny_model / "model.safetensors")
    with open(hub / "blobs" / named, "r+b") as f:
        f.seek(-5, os.SEEK_END)
        f.write(b"\xee")
    is_now = sha(hub / "blobs" / named)
    _, err = cached(tranche, hub, "other", code=65)
    assert f"model.safetensors: want sha256 {named}, as its blob is named, found {is_now}" in err
    assert not (tmp_path / "other").exists()
    shutil.copy(tiny_model / "model.safetensors", hub / "blobs" / named)
    cached(tranche, hub, "other")      # over what the bad one left in other.partial
    whole(tmp_path / "other", tiny_model)
    (hub / "blobs" / named).unlink()
    _, err = cached(tranche, hub, "third", code=65)
    assert "model.safetensors" in err and "No such file" in err


@pytest.mark.parametrize("manifest", [True, False])
def test_other_content_stays_as_it_is(tranche, tiny_model, model_copy, tmp_path, manifest):
    dest = tmp_path / "copy"
    cached(tranche, tiny_model, dest)
    if not manifest:
        (dest / MANIFEST).unlink()
    assert cached(tranche, model_copy, dest)[0].startswith("found ")     # another folder, the same bytes
    kept = {p.name: p.read_bytes() for p in dest.iterdir()}
    with open(model_copy / "model.safetensors", "r+b") as f:
        f.seek(-5, os.SEEK_END)
        f.write(b"\xee")
    _, err = cached(tranche, model_copy, dest, code=65)
    assert f"model.safetensors: sha256 {sha(tiny_model / 'model.safetensors')} there, " \
        f"{sha(model_copy / 'model.safetensors')} in the source" in err
    (model_copy / "generation_config.json").unlink()
    shutil.copy(tiny_model / "model.safetensors", model_copy)
    if manifest:
        assert "has generation_config.json" in cached(tranche, model_copy, dest, code=65)[1]
    assert {p.name: p.read_bytes() for p in dest.iterdir()} == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "model"]


def test_a_copy_that_was_cut_later_is_told(tranche, tiny_model, tmp_path):
    cached(tranche, tiny_model, "copy")
    size = (tiny_model / "model.safetensors").stat().st_size
    os.truncate(tmp_path / "copy/model.safetensors", size - 1)
    _, err = cached(tranche, tiny_model, "copy", code=65)
    assert f"want {size} bytes, as the manifest beside it says, found {size - 1}" in err


def start(binary, folder, *args, **more):
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRANCHE_")}
    return subprocess.Popen([binary, "cache", *map(str, args)], cwd=folder, env=env, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def limited(nbytes):
    def limit():
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))
    return limit


def test_a_death_at_a_byte_and_what_is_made_of_the_rest(binary, tranche, tiny_model, tmp_path):
    """The kernel kills at the limit of a file's size: the same byte each time."""
    done = start(binary, tmp_path, tiny_model, "copy", preexec_fn=limited(1_500_000))
    done.communicate(timeout=120)
    assert done.returncode == -signal.SIGXFSZ
    partial = tmp_path / "copy.partial"
    assert (partial / "model.safetensors").stat().st_size == 1_500_000 and not (tmp_path / "copy").exists()
    kept = (partial / "config.json").stat()
    with open(partial / "model.safetensors", "r+b") as f:    # pages that never reached the disk
        f.seek(500_000)
        f.write(b"\0" * 4096)
    (partial / "config.json.old").write_text("of another model")
    cached(tranche, tiny_model, "copy")
    whole(tmp_path / "copy", tiny_model)
    after = (tmp_path / "copy/config.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (kept.st_ino, kept.st_mtime_ns)    # whole before: not written again


def test_killed_in_the_middle(binary, tranche, large, tmp_path):
    def in_the_middle():
        process = start(binary, tmp_path, large, "copy", preexec_fn=lambda: os.nice(10))
        weights = tmp_path / "copy.partial/model.safetensors"
        with contextlib.suppress(FileNotFoundError):
            while process.poll() is None:
                if weights.exists() and weights.stat().st_size > 20_000_000:
                    break
                time.sleep(0.001)
        process.kill()
        process.communicate(timeout=60)
        return process.returncode == -signal.SIGKILL
    for _ in range(5):      # a process that was quicker than this one on a busy machine
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        if in_the_middle() and not (tmp_path / "copy").exists():
            break
    else:
        pytest.fail("each of five copies of 250 MB was done before it could be killed")
    assert (tmp_path / "copy.lock").exists()      # of the dead one: holds nobody up
    cached(tranche, large, "copy")
    whole(tmp_path / "copy", large)


def test_two_at_once(binary, large, tmp_path):
    both = [start(binary, tmp_path, large, "copy") for _ in range(2)]
    said = [p.communicate(timeout=240) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert sorted(out.split()[0].decode() for out, _ in said) == ["cached", "found"]
    whole(tmp_path / "copy", large)


def test_who_waits_says_for_whom(binary, tiny_model, tmp_path):
    with open(tmp_path / "copy.lock", "w") as held:
        held.write("node-7:4242\n")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting, stopped = [start(binary, tmp_path, tiny_model, "copy") for _ in range(2)]
        for p in (waiting, stopped):
            line = next(line for line in iter(p.stderr.readline, b"") if b"cache_waits" in line).decode()
            assert "held_by=node-7:4242" in line.replace('"', ""), line
        assert not (tmp_path / "copy.partial").exists()
        stopped.terminate()
        stopped.communicate(timeout=60)
        assert stopped.returncode == 143
    out, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0 and out.startswith(b"cached ")
    whole(tmp_path / "copy", tiny_model)


def test_a_write_that_fails(binary, tranche, tiny_model, tmp_path):
    done = start(binary, tmp_path, tiny_model, "copy", preexec_fn=limited(1_500_000), restore_signals=False)
    _, err = done.communicate(timeout=120)
    size = (tiny_model / "model.safetensors").stat().st_size
    assert done.returncode == 74, err
    assert f"copy.partial/model.safetensors: cannot write, 1048576 of {size} bytes are there: File too large" in \
        err.decode()
    assert not (tmp_path / "copy").exists() and not (tmp_path / "copy.lock").exists()
    cached(tranche, tiny_model, "copy")
    whole(tmp_path / "copy", tiny_model)


def test_a_full_volume(binary, tiny_model, tmp_path):
    """In a mount namespace of its own, where this machine grants one."""
    (tmp_path / "volume").mkdir()
    mount = f"mount -t tmpfs -o size=2m none {tmp_path}/volume"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode != 0:
        pytest.skip("no mount namespaces here")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", f"{mount} && exec '{binary}' cache '{tiny_model}' "
                           f"'{tmp_path}/volume/model'"], capture_output=True, timeout=120)
    assert done.returncode == 74, done.stderr
    size = sum((tiny_model / n).stat().st_size for n in NAMES)
    assert f"volume/model.partial: want room for {size} bytes, the volume has " in done.stderr.decode()


@pytest.mark.parametrize("source, dest, code, said", [
    ("{model}", None, 64, "found 1 of two"),
    ("{model}", "/", 64, 'found "/"'),
    ("nowhere", "copy", 65, "nowhere"),
    ("empty", "copy", 65, "want config.json in it"),
    ("{model}", "gone/copy", 74, "gone/copy.lock: cannot make: No such file"),
    ("{model}", "file", 64, "file: want a folder, or nothing"),
    ("broken", "copy", 65, "config.json"),
])
def test_refusals(tranche, tiny_model, tmp_path, source, dest, code, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    shutil.copytree(tiny_model, tmp_path / "broken")
    (tmp_path / "broken/config.json").write_text("{")
    done = tranche("cache", source.format(model=tiny_model), *([dest] if dest else []))
    told = done.stderr.decode().strip().split("\n")[-1]
    assert done.returncode == code and said in told, told
    assert not (tmp_path / "copy").exists() and not (tmp_path / "copy.partial").exists()
