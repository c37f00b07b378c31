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


def in_the_middle(binary, source, tmp_path, what):
    """The process, sent this signal after some 20 of the 250 MB."""
    weights = tmp_path / "copy.partial/model.safetensors"
    for _ in range(5):      # a process that was quicker than this one on a busy machine
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        process = start(binary, tmp_path, source, "copy", preexec_fn=lambda: os.nice(10))
        with contextlib.suppress(FileNotFoundError):
            while process.poll() is None:
                if weights.exists() and weights.stat().st_size > 20_000_000:
                    break
                time.sleep(0.001)
        process.send_signal(what)
        time.sleep(0.05)
        if process.poll() in (None, -what) and weights.exists() and weights.stat().st_size < 250_000_000:
            return process
        process.kill()
        process.communicate(timeout=60)
    pytest.fail("each of five copies of 250 MB was done before it could be stopped")


def test_killed_in_the_middle(binary, tranche, large, tmp_path):
    in_the_middle(binary, large, tmp_path, signal.SIGKILL).communicate(timeout=60)
    assert (tmp_path / "copy.lock").exists()      # of the dead one: holds nobody up
    assert not (tmp_path / "copy").exists()
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


def on_a_volume(tmp_path, command):
    """In a mount namespace of its own, where this machine grants one: tmp_path/volume has 2 MB."""
    (tmp_path / "volume").mkdir()
    mount = f"mount -t tmpfs -o size=2m none {tmp_path}/volume"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode != 0:
        pytest.skip("no mount namespaces here")
    return subprocess.run(["unshare", "-rm", "sh", "-c", f"{mount} && {command}"], capture_output=True, timeout=120)


def test_a_full_volume(binary, tiny_model, tmp_path):
    done = on_a_volume(tmp_path, f"exec '{binary}' cache '{tiny_model}' '{tmp_path}/volume/model'")
    assert done.returncode == 74, done.stderr
    size = sum((tiny_model / n).stat().st_size for n in NAMES)
    assert f"volume/model.partial: want room for {size} bytes, the volume has " in done.stderr.decode()


def test_where_a_volume_is_mounted_is_no_place(binary, tiny_model, tmp_path):
    done = on_a_volume(tmp_path, f"exec '{binary}' cache '{tiny_model}' '{tmp_path}/volume/'")
    assert done.returncode == 64, done.stderr
    assert "volume: want a folder on a volume, found where one is mounted" in done.stderr.decode()
    assert not (tmp_path / "volume.partial").exists()


def modes(folder):
    return {p.name: oct(p.stat().st_mode & 0o7777) for p in [folder, *folder.iterdir()]}


def test_who_reads_is_not_who_wrote(binary, tiny_model, tmp_path):
    """Whatever the umask, and of what an earlier run left behind."""
    partial = tmp_path / "copy.partial"
    partial.mkdir(0o700)
    shutil.copy(tiny_model / "config.json", partial)
    (partial / "config.json").chmod(0o600)
    done = start(binary, tmp_path, tiny_model, "copy", preexec_fn=lambda: os.umask(0o077))
    _, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    assert modes(tmp_path / "copy") == {"copy": "0o755"} | dict.fromkeys(NAMES | {MANIFEST}, "0o644")


def rewritten(source):
    with open(source / "model.safetensors", "r+b") as f:
        f.seek(-5, os.SEEK_END)
        f.write(b"\xee")
    os.utime(source / "model.safetensors", (1, 1))


def grown(source):
    with open(source / "model.safetensors", "ab") as f:
        f.write(b"x")


def another_revision(source):
    """Of a file that was copied before this one."""
    (source / "config.json").write_text((source / "config.json").read_text() + "\n")


@pytest.mark.parametrize("change, named", [(rewritten, "model.safetensors"), (grown, "model.safetensors"),
                                           (another_revision, "config.json")])
def test_a_source_that_changes_meanwhile(binary, tranche, large, tmp_path, change, named):
    process = in_the_middle(binary, large, tmp_path, signal.SIGSTOP)
    before = (large / named).stat()
    change(large)
    now = (large / named).stat()
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 65, err

    def told(st):
        return st.st_size, f"{st.st_mtime_ns // 10**9}.{st.st_mtime_ns % 10**9:09}"
    listed, found = told(before), told(now)
    assert f"{named}: want {listed[0]} bytes, modified at {listed[1]}, as when it was listed, found {found[0]}, " \
        f"at {found[1]}" in err.decode()
    assert not (tmp_path / "copy").exists() and not (tmp_path / "copy.lock").exists()
    if change is not grown:     # whose last byte is of no tensor
        cached(tranche, large, "copy")
        whole(tmp_path / "copy", large)


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("name", ["chat_template.jinja", "generation_config.json"])
def test_more_than_the_source_has_is_another_model(tranche, model_copy, tmp_path, name, manifest):
    more = (model_copy / name).read_bytes()
    (model_copy / name).unlink()
    cached(tranche, model_copy, "copy")
    if not manifest:
        (tmp_path / "copy" / MANIFEST).unlink()
    (tmp_path / "copy/README.md").write_text("which nothing reads")
    assert cached(tranche, model_copy, "copy")[0].startswith("found ")
    (tmp_path / "copy" / name).write_bytes(more)
    _, err = cached(tranche, model_copy, "copy", code=65)
    assert f"copy: has {name}, which a worker would read and the source has not" in err
    assert (tmp_path / "copy" / name).read_bytes() == more


def test_a_link_is_no_place(tranche, tiny_model, tmp_path):
    (tmp_path / "empty").mkdir()
    for target in ("empty", "nowhere"):
        (tmp_path / "copy").symlink_to(target)
        _, err = cached(tranche, tiny_model, "copy", code=64)
        assert "copy: want a folder, or nothing, found a symbolic link" in err
        (tmp_path / "copy").unlink()
    (tmp_path / "copy.partial").symlink_to("empty")     # the rename would move the link
    assert "copy.partial: cannot open" in cached(tranche, tiny_model, "copy", code=74)[1]
    (tmp_path / "copy.partial").unlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty"] and not list((tmp_path / "empty").iterdir())
    cached(tranche, tiny_model, "real")
    (tmp_path / "copy").symlink_to("real")              # nothing to make: as good as what it links to
    assert cached(tranche, tiny_model, "copy")[0].startswith("found ")


FORGETFUL = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
static int skip;    /* a listing that forgets the name behind one that was removed */
int unlink(const char *path)
{
    skip = 1;
    return ((int (*)(const char *))dlsym(RTLD_NEXT, "unlink"))(path);
}
struct dirent *readdir(DIR *d)
{
    struct dirent *(*next)(DIR *) = (struct dirent * (*)(DIR *)) dlsym(RTLD_NEXT, "readdir");
    struct dirent *e = next(d);
    if (!skip || !e)
        return e;
    skip = 0;
    return next(d);
}
struct dirent64 *readdir64(DIR *d)
{
    return (struct dirent64 *)readdir(d);
}
"""


def test_a_listing_that_skips_names(binary, tiny_model, tmp_path):
    """As some NFS servers' do while their folder shrinks."""
    partial, shim = tmp_path / "copy.partial", tmp_path / "forgetful.so"
    partial.mkdir()
    for i in range(9):
        (partial / f"model-{i}-of-9.safetensors").write_text("of another model")
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-o", shim, "-", "-ldl"], input=FORGETFUL.encode(), check=True)
    done = subprocess.run([binary, "cache", tiny_model, tmp_path / "copy"], capture_output=True, timeout=120,
                          env=os.environ | {"LD_PRELOAD": str(shim)})
    assert done.returncode == 0, done.stderr
    whole(tmp_path / "copy", tiny_model)


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
