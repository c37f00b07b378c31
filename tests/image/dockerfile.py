"""dockerfile: the Dockerfile as data, and its steps carried out where no container engine runs: each
instruction that changes files is an overlay's upper folder, so layers have the sizes that an engine
would give them. Plain instructions only; what it does not know is an error.

All mounts are made in a mount namespace of the step's own, and go with it, whatever happens."""
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Of this machine: how it reaches packages. Never in a layer.
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def parse(path=f"{ROOT}/Dockerfile"):
    """[(instruction, its text)]: comments gone, continued lines joined."""
    lines = [line for line in open(path).read().split("\n") if not re.match(r"\s*#", line)]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    return [tuple(line.strip().split(None, 1)) for line in text.split("\n") if line.strip()]


class Stage:
    def __init__(self, name, base):
        self.name, self.base = name, base
        self.steps = []


def stages(instructions):
    """{name: Stage}, in order."""
    found = {}
    for what, rest in instructions:
        if what == "FROM":
            base, name = re.fullmatch(r"(\S+) AS ([\w-]+)", rest).groups()
            stage = found[name] = Stage(name, base)
        else:
            assert what in ("RUN", "COPY", "WORKDIR", "ENV", "ARG", "LABEL", "USER", "ENTRYPOINT", "CMD"), what
            stage.steps.append((what, rest))
    return found


def expand(text, values):
    return re.sub(r"\$\{?(\w+)\}?", lambda m: values[m[1]], text)


def pairs(text):
    return dict(word.split("=", 1) for word in shlex.split(text))


class Image:
    """What a stage has come to: layers from the lowest up, and how it is run."""

    def __init__(self, layers):
        self.layers = list(layers)  # [(key, what made it, folder)]
        self.env, self.args, self.labels, self.workdir, self.user = {}, {}, {}, "/", "0:0"
        self.entrypoint, self.cmd = [], []

    def child(self):
        other = Image(self.layers)
        other.env, other.labels, other.workdir = dict(self.env), dict(self.labels), self.workdir
        other.user, other.entrypoint, other.cmd = self.user, list(self.entrypoint), list(self.cmd)
        return other

    def find(self, path):
        """Where a file of the image lies on this machine."""
        for _, _, folder in reversed(self.layers):
            if os.path.lexists(folder + path):
                return folder + path
        raise AssertionError(f"no {path} in the image")

    def files(self):
        """{path: (file on this machine)} of the image as a whole; what a layer took away is gone."""
        seen = {}
        for _, _, folder in self.layers:
            for top, folders, names in os.walk(folder):
                inside = top[len(folder):]
                for name in names + [f for f in folders if os.path.islink(f"{top}/{f}")]:
                    path = f"{inside}/{name}"
                    at = f"{top}/{name}"
                    status = os.lstat(at)
                    if status.st_rdev == 0 and (status.st_mode & 0o170000) == 0o020000:  # a whiteout
                        for gone in [p for p in seen if p == path or p.startswith(path + "/")]:
                            del seen[gone]
                    else:
                        seen[path] = at
        return seen


def size(folder):
    """Bytes of the files of a layer; hard links once."""
    seen, total = set(), 0
    for top, _, names in os.walk(folder):
        for name in names:
            s = os.lstat(f"{top}/{name}")
            if s.st_ino not in seen:
                seen.add(s.st_ino)
                total += s.st_size
    return total


ENTER = r"""
set -eu
mount -t overlay overlay -o "$1" "$2"
mount -t proc proc "$2/proc"
mount -t tmpfs -o mode=755 tmpfs "$2/dev"
for device in null zero full random urandom; do
    : >"$2/dev/$device"
    mount --bind "/dev/$device" "$2/dev/$device"
done
ln -s /proc/self/fd "$2/dev/fd"
mkdir -m 1777 "$2/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$2/run"
if [ "$3" = build ]; then
    mount --bind /etc/resolv.conf "$2/etc/resolv.conf"
    [ ! -f "$4" ] || cp "$4" "$2/run/certificates.pem"
fi
while [ "$5" != -- ]; do
    mount -t tmpfs -o mode=1777 tmpfs "$2$5"
    shift
done
root=$2
shift 5
exec chroot "$@"
"""


SLIM = ["doc", "man", "info", "locale", "lintian", "linda", "groff"]


def base(cache, tag):
    """A root that stands in for Debian's slim image of that tag, made by debootstrap, once."""
    suite = re.fullmatch(r"debian:(\w+)-\d{8}-slim", tag)[1]
    made = f"{cache}/base-{suite}"
    if not os.path.isdir(made):
        part = f"{made}.part"
        mirror = "http://deb.debian.org/debian"
        shutil.rmtree(part, ignore_errors=True)
        os.makedirs(cache, exist_ok=True)
        with open(f"{cache}/debootstrap.log", "wb") as log:
            done = subprocess.run(["debootstrap", "--variant=minbase", suite, part, mirror], stdout=log, stderr=log)
        if done.returncode != 0:
            raise AssertionError(open(f"{cache}/debootstrap.log").read()[-2000:])
        slim(part, suite, mirror)
        os.rename(part, made)
    return made


def slim(root, suite, mirror):
    """What debuerreotype, which makes the slim images, takes out, and keeps dpkg from bringing back."""
    with open(f"{root}/etc/dpkg/dpkg.cfg.d/slim", "w") as f:
        f.writelines(f"path-exclude /usr/share/{name}/*\n" for name in SLIM)
        f.write("path-include /usr/share/doc/*/copyright\n")
    with open(f"{root}/etc/apt/sources.list", "w") as f:
        f.write(f"deb {mirror} {suite} main\ndeb {mirror} {suite}-updates main\n"
                f"deb {mirror}-security {suite}-security main\n")
    for name in SLIM:
        for top, _, names in os.walk(f"{root}/usr/share/{name}"):
            for n in names:
                if name != "doc" or n != "copyright":
                    os.remove(f"{top}/{n}")
    for folder in ("var/lib/apt/lists", "var/cache/apt", "var/log"):
        for top, _, names in os.walk(f"{root}/{folder}"):
            for n in names:
                os.remove(f"{top}/{n}")


class Builder:
    def __init__(self, base, cache, args):
        """`args`: what --build-arg would set."""
        self.base, self.cache, self.args = base, cache, args
        self.made = {}
        os.makedirs(f"{cache}/layers", exist_ok=True)

    def enter(self, options, mode, tmpfs, command, env, **more):
        point = f"{self.cache}/point.{os.getpid()}"
        os.makedirs(point, exist_ok=True)
        chroot = [c if c != "ROOT" else point for c in command]
        try:
            return subprocess.run(
                ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "sh", "-c",
                 ENTER, "enter", options, point, mode, CERTIFICATES, *tmpfs, "--", *chroot],
                env={"PATH": PATH, **env}, stdin=subprocess.DEVNULL, **more)
        finally:
            os.rmdir(point)

    def lower(self, image):
        return ":".join(folder for _, _, folder in reversed(image.layers))

    def layer(self, image, what, key, fill):
        """A new layer that `fill` writes into a folder, or the one that an earlier build left."""
        key = hashlib.sha256(json.dumps([image.layers[-1][0], what, key]).encode()).hexdigest()[:24]
        done = f"{self.cache}/layers/{key}"
        if not os.path.isdir(done):
            part = f"{done}.part"
            shutil.rmtree(part, ignore_errors=True)
            os.makedirs(part)
            fill(part)
            os.rename(part, done)
        image.layers.append((key, what, done))

    def run(self, image, text):
        network = {k: v for k, v in os.environ.items() if re.match(r"PIP_|https?_proxy|no_proxy", k, re.I)}
        if os.path.exists(CERTIFICATES):
            network["PIP_CERT"] = "/run/certificates.pem"

        def fill(part):
            work = f"{part}.work"
            shutil.rmtree(work, ignore_errors=True)
            os.makedirs(work)
            done = self.enter(
                f"lowerdir={self.lower(image)},upperdir={part},workdir={work}", "build", [],
                ["ROOT", "/bin/sh", "-c", f"cd {shlex.quote(image.workdir)} && {text}"],
                {"DEBIAN_FRONTEND": "noninteractive", **network, **image.args, **image.env},
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            shutil.rmtree(work, ignore_errors=True)
            if done.returncode != 0:
                raise AssertionError(f"RUN {text}\n{done.stdout.decode(errors='replace')[-4000:]}")
            for folder in ("dev", "proc", "run"):  # where mounts were
                assert not os.path.isdir(f"{part}/{folder}") or not os.listdir(f"{part}/{folder}"), folder
        self.layer(image, f"RUN {text}", [image.env, image.args, image.workdir], fill)

    def copy(self, image, text):
        *sources, target = shlex.split(text)
        origin = None
        if sources[0].startswith("--from="):
            origin = self.build(sources.pop(0)[len("--from="):])
        target = os.path.join(image.workdir, target) if not target.startswith("/") else target
        whole = [(s, origin.find(s) if origin else f"{ROOT}/{s}") for s in sources]

        def fill(part):
            for source, at in whole:
                into = part + (f"{target}/{os.path.basename(source)}" if target.endswith("/") else target)
                os.makedirs(os.path.dirname(into), exist_ok=True)
                if os.path.isdir(at):
                    shutil.copytree(at, into, dirs_exist_ok=True)
                else:
                    shutil.copy(at, into)
        self.layer(image, f"COPY {text}", [self.sum(at) for _, at in whole], fill)

    @staticmethod
    def sum(path):
        names = [path] if not os.path.isdir(path) else sorted(
            f"{top}/{n}" for top, _, files in os.walk(path) for n in files if "__pycache__" not in top)
        whole = hashlib.sha256()
        for name in names:
            whole.update(f"{name[len(path):]} {os.stat(name).st_mode:o}\n".encode())
            with open(name, "rb") as f:
                while piece := f.read(1 << 20):
                    whole.update(piece)
        return whole.hexdigest()

    def build(self, name):
        if name in self.made:
            return self.made[name]
        stage = stages(parse())[name]
        image = self.build(stage.base).child() if stage.base in stages(parse()) else \
            Image([(stage.base, f"FROM {stage.base}", self.base)])
        for what, rest in stage.steps:
            values = {**image.args, **image.env}
            if what == "RUN":
                self.run(image, re.sub(r"\s+", " ", rest))
            elif what == "COPY":
                self.copy(image, expand(rest, values))
            elif what == "WORKDIR":
                image.workdir = rest
            elif what == "ENV":
                image.env.update(pairs(expand(rest, values)))
            elif what == "ARG":
                key, default = rest.split("=", 1)
                image.args[key] = self.args.get(key, default)
            elif what == "LABEL":
                image.labels.update(pairs(expand(rest, values)))
            elif what == "USER":
                image.user = rest
            elif what == "ENTRYPOINT":
                image.entrypoint = json.loads(rest)
            elif what == "CMD":
                image.cmd = json.loads(rest)
        self.made[name] = image
        return image

    def start(self, image, args, tmpfs=(), extra=None, entrypoint=None, **more):
        """As a container: the image's user, its environment, the root read-only but for `tmpfs`.
        `extra`: a folder whose files the image has besides (a volume, in short). `entrypoint`: another one."""
        layers = ([extra] if extra else []) + [folder for _, _, folder in reversed(image.layers)]
        if len(layers) == 1:
            layers.append(self.base)
        return self.enter(f"lowerdir={':'.join(layers)}", "run", tmpfs,
                          [f"--userspec={image.user}", "--groups=", "ROOT", *(entrypoint or image.entrypoint), *args],
                          image.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
