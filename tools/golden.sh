#!/bin/sh
# golden: remakes every golden file of tests/golden with the releases that they are pinned to. It
# alone needs Transformers: a virtual environment of its own in .cache/golden, some 6 GB on disk.
# On another processor the last bits of the logits may differ; what the tests allow is far more.
set -eu
cd "$(dirname "$0")/.."
venv=.cache/golden
tools/install.sh golden
tools/fixtures.sh
tools/fixtures_templates.sh
if [ ! -e "$venv/complete" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check \
        transformers==5.23.0 torch==2.15.0 tokenizers==0.23.3 jinja2==3.1.6
    touch "$venv/complete"
fi
for name in chat_template tokenizer logits tiny; do
    echo "golden: $name"
    "$venv/bin/python" "tools/golden_$name.py"
done
git diff --stat -- tests/golden
