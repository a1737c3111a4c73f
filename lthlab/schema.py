"""The JSON Schema of studies, for editors."""

import json
import re
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from lthlab.datasets import DATASETS
from lthlab.parts import NETS, POLICIES
from lthlab.sections import OF_PANEL, Study

SHIPPED = Path(__file__).parent / "study.schema.json"
"""The schema as it is shipped; a study's first line may name it for the editor."""


def study() -> dict[str, Any]:
    """Make the JSON Schema (draft 2020-12) of the study format.

    Returns
    -------
    dict
        It takes what `lthlab.spec.read` takes, as far as a schema can tell: relations between fields are left out.
    """
    found = Study.model_json_schema(schema_generator=_Schema)
    definitions, sections = found["$defs"], found["properties"]
    definitions["Protocol"]["properties"]["prunable"]["enum"] = list(POLICIES)
    for name, known in (("net", NETS), ("data", DATASETS)):
        named = {"anyOf": [{"enum": sorted(known)}, {"type": "string"}]}  # or a name of one's own
        definition = definitions[name.capitalize()]
        definition["properties"]["name"] |= named
        one = {"anyOf": [*named["anyOf"], {"$ref": f"#/$defs/{name.capitalize()}"}]}
        sections[name] = {"anyOf": [*one["anyOf"], {"type": "array", "items": one, "minItems": 1}]}
        partly = {key: value for key, value in definition.items() if key != "required"}
        definitions[f"part_of_{name}"] = {"anyOf": [*sections[name]["anyOf"], partly]}
    for group in ("Tickets", "Measures"):
        for field in definitions[group]["properties"].values():
            field["anyOf"].append({"const": False})
    panel = {name: sections[name] for name in (*OF_PANEL, "presets")}
    panel |= {name: {"$ref": f"#/$defs/part_of_{name}"} for name in ("net", "data")}
    items = {"type": "object", "properties": panel, "additionalProperties": False}
    sections["panels"] = {"type": "array", "items": items, "minItems": 1, "description": "What differs between panels."}
    small = {name: section for name, section in sections.items() if name not in ("name", "presets", "mini")}
    small |= {name: {"$ref": f"#/$defs/part_of_{name}"} for name in ("net", "data")}
    small = {name: {"anyOf": [section, {"type": "null"}]} for name, section in small.items()}
    text = "What differs in the small form, which --mini asks for; null takes a field away."
    sections["mini"] = {"type": "object", "properties": small, "additionalProperties": False, "description": text}
    found["required"] = ["name"]  # presets and panels may give the rest
    return {"$schema": GenerateJsonSchema.schema_dialect, **found, "title": "A study of lthlab"}


class _Schema(GenerateJsonSchema):
    """Says where one value stands for a list of one, and describes fields as the docstrings do."""

    def list_schema(self, schema: Any) -> dict[str, Any]:
        found = super().list_schema(schema)
        return {"anyOf": [found["items"], found]} if "items" in found and found["items"] else found

    def model_schema(self, schema: Any) -> dict[str, Any]:
        found = super().model_schema(schema)
        model: type[BaseModel] = schema["cls"]
        described = _fields(model.__doc__ or "")
        for name, field in found.get("properties", {}).items():
            field.pop("title", None)
            if name in described:
                field["description"] = described[name]
        found["description"] = (model.__doc__ or "").partition("\n")[0]
        return found


def _fields(docstring: str) -> dict[str, str]:
    """Read what a numpydoc docstring says of each parameter."""
    blocks = re.findall(r"^    (\w[\w, ]*) : .*\n((?:        .*\n?)+)", docstring, re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in blocks for name in names.split(", ")}


def text() -> str:
    """Write the schema as it is shipped."""
    return json.dumps(study(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
