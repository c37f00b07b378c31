"""schema: what the API server would say of an object under strict decoding: Kubernetes' own OpenAPI
document and the CRDs of KEDA and prometheus-operator, with every field refused that they do not name."""
import copy
import glob
import json

import jsonschema
import yaml

from manifests import CACHE


def strict(node):
    """Closes each object that lists its fields, in place; turns int-or-string into both."""
    if isinstance(node, list):
        for item in node:
            strict(item)
    elif isinstance(node, dict):
        if node.get("format") == "int-or-string" or node.get("x-kubernetes-int-or-string"):
            for key in ("type", "anyOf", "format"):
                node.pop(key, None)
            node["anyOf"] = [{"type": "integer"}, {"type": "string"}]
        if isinstance(node.get("properties"), dict) and not node.get("x-kubernetes-preserve-unknown-fields") \
                and node.get("type", "object") == "object":
            node.setdefault("additionalProperties", False)
        for key, value in node.items():
            strict(value) if key not in ("enum", "default", "required") else None
    return node


def kubernetes():
    """{(apiVersion, kind): its definition's name}, all definitions."""
    definitions = strict(json.load(open(f"{CACHE}/swagger.json"))["definitions"])
    kinds = {}
    for name, definition in definitions.items():
        for gvk in definition.get("x-kubernetes-group-version-kind", ()):
            version = f"{gvk['group']}/{gvk['version']}".lstrip("/")
            # DeleteOptions and the like stand under every group.
            if "metadata" in definition.get("properties", {}):
                kinds[version, gvk["kind"]] = name
    return kinds, definitions


class Schemas:
    def __init__(self):
        self.kinds, self.definitions = kubernetes()
        self.made = {}
        for path in glob.glob(f"{CACHE}/*.yaml"):
            crd = yaml.safe_load(open(path))["spec"]
            for version in crd["versions"]:
                body = strict(copy.deepcopy(version["schema"]["openAPIV3Schema"]))
                body["properties"]["metadata"] = {
                    "$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
                key = (f"{crd['group']}/{version['name']}", crd["names"]["kind"])
                self.made[key] = self.validator(body)

    def validator(self, body):
        return jsonschema.Draft4Validator({**body, "definitions": self.definitions})

    def errors(self, o):
        """Sentences, each with the path of the field."""
        key = (o.get("apiVersion"), o.get("kind"))
        if key not in self.made:
            if key not in self.kinds:
                return [f"{key[0]} {key[1]}: no such kind"]
            body = {"$ref": f"#/definitions/{self.kinds[key]}"}
            self.made[key] = self.validator(body)
        found = [f"{o['kind']}/{o.get('metadata', {}).get('name')}: "
                 f"{'.'.join(str(p) for p in e.absolute_path)}: {e.message[:200]}"
                 for e in self.made[key].iter_errors(o)]
        # The API server wants these two, though its document does not.
        return found + [f"{key[1]}: no {f}" for f in ("apiVersion", "kind") if not o.get(f)]
