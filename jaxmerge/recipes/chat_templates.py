"""Chat templates by name, written from the formats' published descriptions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmerge.errors import UserError, closest
from jaxmerge.io.untrusted import member, read_json, read_text

MAX_BYTES = 1 << 20  # bytes of a template

TURN = "{{ %s + message['role'] + %s + message['content'] + %s }}"
LOOP = "{%% for message in messages %%}%s{%% endfor %%}"

TEMPLATES = {
    "chatml": LOOP % (TURN % ("'<|im_start|>'", "'\\n'", "'<|im_end|>\\n'"))
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "llama3": "{{ bos_token }}"
    + LOOP % (TURN % ("'<|start_header_id|>'", "'<|end_header_id|>\\n\\n'", "'<|eot_id|>'"))
    + "{% if add_generation_prompt %}"
    + "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "mistral": "{{ bos_token }}"
    + LOOP
    % (
        "{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
        "{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}"
    ),
    "alpaca": LOOP
    % (
        "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
        "{% elif message['role'] == 'user' %}"
        "{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
        "{% else %}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}{% endif %}"
    )
    + "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}",
    "exaone": LOOP
    % (
        "{{ '[|' + message['role'] + '|]' + message['content'] }}"
        "{% if message['role'] == 'user' %}{{ '\\n' }}{% else %}{{ '[|endofturn|]\\n' }}{% endif %}"
    )
    + "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}",
}


def template_files(setting: Any, folder: Path | None, sources: Sequence[Any]) -> dict[str, bytes]:
    """The files that give the output its chat template.

    Args:
        setting: "auto" (the one that most of the models have), a name, or Jinja text.
        folder: whose tokenizer_config.json is changed.
    """
    if not isinstance(setting, str):
        raise UserError(f"chat_template must be auto, a name or Jinja text, got {setting!r}.")
    if setting == "auto":
        templates = Counter(t for s in sources if (t := template_of(s.folder)))
        if not templates:
            return {}
        template = templates.most_common(1)[0][0]
    elif "{" in setting:
        template = setting
    elif setting in TEMPLATES:
        template = TEMPLATES[setting]
    else:
        raise UserError(f"chat_template {setting!r}: {closest(setting, [*TEMPLATES, 'auto'])}")
    files = {"chat_template.jinja": template.encode()}
    config = member(folder, "tokenizer_config.json")
    if config is not None:
        content = read_json(config)
        if "chat_template" in content:
            content["chat_template"] = template
            files[config.name] = (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()
    return files


def template_of(folder: Path | None) -> str | None:
    """A model's chat template, from either file."""
    if folder is None:
        return None
    if jinja := member(folder, "chat_template.jinja"):
        return read_text(jinja, MAX_BYTES, "a chat template")
    config = member(folder, "tokenizer_config.json")
    template = read_json(config).get("chat_template") if config else None
    return template if isinstance(template, str) else None
