#!/usr/bin/env python3
"""Makes tests/golden/chat_template/*.json: what Jinja2 under Hugging Face's settings prints.

    python3 tools/golden_chat_template.py          remake all (needs jinja2 3.1.6)
    python3 tools/golden_chat_template.py --check  compare with what is committed

constructs.json: one construct alone per case, from golden_chat_template_cases.py, expected text included.
renders.json: whole templates times conversations. Of a template of ours the text is written down,
of one that a registry package brings (.cache/fixtures, see fixtures_templates.sh) its SHA-256.
"""
import datetime
import hashlib
import json
import pathlib
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import golden_chat_template_cases as cases  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests/golden/chat_template"
JINJA2 = "3.1.6"
TAG = "CONTINUE_FINAL_MESSAGE_TAG "


class Generation(jinja2.ext.Extension):
    """{% generation %}: its body in place, in a scope of its own."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_body")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


class Namespace(jinja2.utils.Namespace):
    """Refuses names that begin with an underscore, as Hugging Face's does."""

    def __init__(*args, **kwargs):
        self, rest = args[0], args[1:]
        attrs = dict(*rest, **kwargs)
        for name in attrs:
            Namespace.check(name)
        jinja2.utils.Namespace.__init__(self, attrs)

    def __setitem__(self, name, value):
        Namespace.check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def check(name):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(name)


def environment(date_ns):
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def strftime_now(fmt):
        second, rest = divmod(date_ns, 10**9)
        now = datetime.datetime.fromtimestamp(second, datetime.timezone.utc)
        return now.replace(tzinfo=None, microsecond=rest // 1000).strftime(fmt)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["namespace"] = Namespace
    if date_ns:
        env.globals["strftime_now"] = strftime_now
    return env


def render(template, context, date_ns=0):
    """("expect", text) or ("error", class name)."""
    try:
        text = environment(date_ns).from_string(template).render(**context)
        text.encode()
        if " at 0x" in text:
            return "error", "a memory address, different in every run"
        return "expect", text
    except Exception as e:  # noqa: BLE001 - whatever it is, the template fails
        return "error", f"{type(e).__name__}: {e}"


def constructs():
    out = []
    for name, template in cases.constructs():
        key, value = render(template, {"tools": None, "documents": None, **cases.CTX})
        out.append({"name": name, "template": template, key: value})
    for name, template, message in cases.refused():
        out.append({"name": name, "template": template, "refused": message})
    return {"context": cases.CTX, "cases": out, "code_points": code_points()}


def code_points():
    """Every code point through the case mappings: {expression: SHA-256 of all that it prints}."""
    out = {}
    for expression in cases.CODE_POINTS:
        template = environment(0).from_string("{{ " + expression + " }}")
        digest = hashlib.sha256()
        for start in range(0, 0x110000, 0x1000):
            chars = [chr(c) for c in range(start, start + 0x1000) if not 0xD800 <= c < 0xE000]
            digest.update(template.render(x="-".join(chars)).encode())
        out[expression] = digest.hexdigest()
    return out


def chat(template, shape, tokens):
    """What apply_chat_template returns for one conversation."""
    messages = json.loads(json.dumps(shape["messages"]))
    final = None
    if shape.get("continue_final_message"):
        final = messages[-1]["content"]
        messages[-1]["content"] = final + TAG
    context = {
        "tools": shape.get("tools"),
        "documents": None,
        "add_generation_prompt": shape.get("add_generation_prompt", True),
        **tokens,
        **shape.get("kwargs", {}),
        "messages": messages,
    }
    key, text = render(template, context, shape.get("date_ns", 0))
    if key == "error" or final is None:
        return key, text
    if final.strip() not in text or TAG.strip() not in text:
        return "error", "the final message is not in the render"
    at = text.rindex(TAG.strip())
    return "expect", text[:at] if text[at : at + len(TAG)] == TAG else text[:at].rstrip()


def token_text(value):
    return value["content"] if isinstance(value, dict) else value


def templates():
    """(name, template text, special tokens, ours)."""
    tokens = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
    for path in sorted(GOLDEN.glob("*.jinja")):
        yield path.stem, path.read_text(), cases.TOKENS.get(path.stem, tokens), True
    for name in cases.FIXTURES:
        path = ROOT / ".cache/fixtures" / name / "tokenizer_config.json"
        config = json.loads(path.read_text())
        named = {
            k: token_text(config[k])
            for k in ("bos_token", "eos_token", "unk_token", "pad_token")
            if config.get(k)
        }
        yield name, config["chat_template"], named, False


def renders():
    out = {"shapes": cases.SHAPES, "templates": []}
    for name, template, tokens, ours in templates():
        entry = {
            "name": name,
            "sha256": hashlib.sha256(template.encode()).hexdigest(),
            "tokens": tokens,
            "ours": ours,
            "renders": {},
        }
        for shape in cases.SHAPES:
            key, text = chat(template, shape, tokens)
            if key == "error":
                entry["renders"][shape["name"]] = {"error": text[:200] if ours else True}
            elif ours:
                entry["renders"][shape["name"]] = {"expect": text}
            else:
                digest = hashlib.sha256(text.encode()).hexdigest()
                entry["renders"][shape["name"]] = {"sha256": digest, "bytes": len(text.encode())}
        out["templates"].append(entry)
    return out


def main():
    if jinja2.__version__ != JINJA2:
        sys.exit(f"want jinja2 {JINJA2}, have {jinja2.__version__}")
    check = "--check" in sys.argv
    for name, value in (("constructs.json", constructs()), ("renders.json", renders())):
        path = GOLDEN / name
        text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
        if check and path.read_text() != text:
            sys.exit(f"{path}: differs from what Jinja2 prints")
        if not check:
            path.write_text(text)
        n = len(value.get("cases", [])) + sum(len(t["renders"]) for t in value.get("templates", []))
        print(f"{path.name}: {n} cases")


if __name__ == "__main__":
    main()
