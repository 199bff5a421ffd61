"""KubeRay's own schemas of RayJob and RayCronJob, made strict: a key that they do not know is an error here.

Kubernetes takes an unknown key and drops it, so a misspelt one would only show on a cluster. The schemas are read from
KubeRay's CRDs where these are at hand (RAYFERRY_KUBERAY_CRDS names their folder), else from `data/`, which has keys and
types of theirs, and which `python kuberay_schemas.py FOLDER` writes anew.
"""

import functools
import hashlib
import json
import os
import sys
from pathlib import Path

import yaml

FIXTURE = Path(__file__).with_name("data") / "kuberay_schemas.json"
_FILES = ("ray.io_rayjobs.yaml", "ray.io_raycronjobs.yaml")
_KEPT = ("type", "required", "enum", "minimum", "x-kubernetes-preserve-unknown-fields")
_SHARED_FROM = 200  # characters of a part from which on it is written once
_SOURCE = "Keys and types of KubeRay's CRDs: https://github.com/ray-project/kuberay (Apache License 2.0)"


def _crd_folder():
    """Where KubeRay's CRDs are, if they are at hand."""
    beside = Path(__file__).parents[4].parent / "shared" / "kuberay"
    folder = Path(os.environ.get("RAYFERRY_KUBERAY_CRDS", beside))
    return folder if all((folder / name).is_file() for name in _FILES) else None


CRDS = _crd_folder()  # before a test's clean environment


@functools.cache
def reduced(folder):
    """Keys and types of the CRDs, each larger part once."""
    parts = {}

    def of(schema):
        if schema.get("x-kubernetes-int-or-string"):
            return {"type": ["integer", "string"]}
        kept = {key: schema[key] for key in _KEPT if key in schema}
        if "properties" in schema:
            kept["properties"] = {key: of(value) for key, value in sorted(schema["properties"].items())}
        if "items" in schema:
            kept["items"] = of(schema["items"])
        if isinstance(schema.get("additionalProperties"), dict):
            kept["additionalProperties"] = of(schema["additionalProperties"])
        text = json.dumps(kept, sort_keys=True)
        if len(text) < _SHARED_FROM:
            return kept
        name = hashlib.sha256(text.encode()).hexdigest()[:8]
        parts[name] = kept
        return {"$ref": f"#/$defs/{name}"}

    kinds = {}
    for name in _FILES:
        crd = yaml.load((folder / name).read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
        version = next(one for one in crd["versions"] if one["storage"])
        root = version["schema"]["openAPIV3Schema"]["properties"]
        kinds[crd["names"]["kind"]] = {
            "type": "object",
            "required": ["apiVersion", "kind", "metadata", "spec"],
            "properties": {key: of(root[key]) for key in ("apiVersion", "kind", "spec")}
            | {"metadata": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
        }
    return {"$comment": _SOURCE, "$defs": dict(sorted(parts.items())), **kinds}


def strict_schema(kind):
    """A JSON Schema of one kind of manifest."""
    value = reduced(CRDS) if CRDS else json.loads(FIXTURE.read_text())
    return _closed({"$defs": value["$defs"], **value[kind]})


def _closed(schema):
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        closed.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    return closed


def as_text(value):
    """The fixture's text: a part on each line."""
    lines = [f"  {json.dumps(key)}: {json.dumps(part, sort_keys=True)}" for key, part in value["$defs"].items()]
    rest = [f" {json.dumps(key)}: {json.dumps(part, sort_keys=True)}" for key, part in value.items() if key != "$defs"]
    return "{\n" + ",\n".join(rest) + ',\n "$defs": {\n' + ",\n".join(lines) + "\n }\n}\n"


if __name__ == "__main__":
    FIXTURE.write_text(as_text(reduced(Path(sys.argv[1]))))
