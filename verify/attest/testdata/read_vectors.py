"""Reads all vectors as another implementation would: standard library only.

    read_vectors.py SCHEMA-FOLDER VECTOR-FOLDER

It implements what the schemas use: type, properties, required,
additionalProperties, items. Strict JSON: no duplicate keys, nothing behind.
The states of a list of pieces are computed again by sha256_states.py.
"""
import base64
import hashlib
import json
import pathlib
import sys

import sha256_states

TYPES = {"object": dict, "array": list, "string": str, "boolean": bool}


def no_duplicates(pairs):
    seen = dict(pairs)
    if len(seen) != len(pairs):
        raise ValueError("duplicate key")
    return seen


def check(schema, value, path="$"):
    if schema is True or schema == {}:
        return
    kind = schema.get("type")
    if kind in TYPES and not isinstance(value, TYPES[kind]):
        raise ValueError(f"{path}: not of type {kind}")
    if kind in ("integer", "number"):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{path}: not a number")
        if kind == "integer" and value != int(value):
            raise ValueError(f"{path}: not an integer")
    if kind == "object":
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name in schema.get("required", []):
            if name not in value:
                raise ValueError(f"{path}: {name} is missing")
        for name, item in value.items():
            if name in properties:
                check(properties[name], item, f"{path}.{name}")
            elif more is False:
                raise ValueError(f"{path}: {name} is unknown")
            elif isinstance(more, dict):
                check(more, item, f"{path}.{name}")
    if kind == "array":
        for i, item in enumerate(value):
            check(schema.get("items", True), item, f"{path}[{i}]")


def pieces(document):
    """Computes the states of a list of pieces from the bytes 0, 1, 2, ..., and compares."""
    data = bytes(range(document["size"]))
    if "sha256:" + hashlib.sha256(data).hexdigest() != document["blob"]:
        raise ValueError("the blob is another one")
    if base64.b64encode(sha256_states.states(data, document["pieceSize"])).decode() != document["states"]:
        raise ValueError("the states are other ones")


def main(schemas, vectors):
    wrong = documents = read = 0
    for folder in sorted(pathlib.Path(vectors).iterdir()):
        documents += 1
        schema = json.loads((pathlib.Path(schemas) / (folder.name + ".schema.json")).read_text())
        for file in sorted(folder.glob("*.json")):
            read += 1
            try:
                document = json.loads(file.read_text(), object_pairs_hook=no_duplicates)
                check(schema, document)
                if file.name == "valid.json" and folder.name == "pieces":
                    pieces(document)
                problem = None
            except ValueError as e:
                problem = str(e)
            if (problem is None) != (file.name == "valid.json"):
                wrong += 1
                print(f"{file}: {problem or 'accepted'}")
    print(f"{documents} documents, {read} vectors, {wrong} wrong")
    return 1 if wrong or not read else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
