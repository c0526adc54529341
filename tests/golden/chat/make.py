#!/usr/bin/env python3
"""Renders chat templates of the supported families' kinds with the reference engine.

Writes `expected.jsonl` beside this file: one object a line with `name`, `template`, `bos`, `eos`, `messages` and either
`text` or `error`. The environment is the one that the reference library gives to chat templates: Jinja2's sandbox with
trim_blocks, lstrip_blocks and loop controls, `raise_exception`, and `tojson` without escaping.

    python3 tests/golden/chat/make.py        # needs jinja2 only
"""

import json
import pathlib

from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATES = {
    # (template, bos, eos): written after the families' documented formats, with the constructs their templates use.
    "mistral": (
        "{%- if messages[0]['role'] == 'system' %}\n"
        "    {%- set system_message = messages[0]['content'] %}\n"
        "    {%- set loop_messages = messages[1:] %}\n"
        "{%- else %}\n"
        "    {%- set loop_messages = messages %}\n"
        "{%- endif %}\n"
        "{{- bos_token }}\n"
        "{%- for message in loop_messages %}\n"
        "    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n"
        "        {{- raise_exception('After the optional system message, roles must alternate user/assistant') }}\n"
        "    {%- endif %}\n"
        "    {%- if message['role'] == 'user' %}\n"
        "        {%- if loop.first and system_message is defined %}\n"
        "            {{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}\n"
        "        {%- else %}\n"
        "            {{- ' [INST] ' + message['content'] + ' [/INST]' }}\n"
        "        {%- endif %}\n"
        "    {%- elif message['role'] == 'assistant' %}\n"
        "        {{- ' ' + message['content'] + eos_token}}\n"
        "    {%- else %}\n"
        "        {{- raise_exception('Only user and assistant roles are supported') }}\n"
        "    {%- endif %}\n"
        "{%- endfor %}\n",
        "<s>",
        "</s>",
    ),
    "llama-2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        "<s>",
        "</s>",
    ),
    "llama-3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim"
        " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        "<|begin_of_text|>",
        "<|eot_id|>",
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
        "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
        "<bos>",
        "<eos>",
    ),
    "deepseek-coder": (
        "{% if not add_generation_prompt is defined %}\n{% set add_generation_prompt = false %}\n{% endif %}\n"
        "{%- set ns = namespace(found=false) -%}\n{%- for message in messages -%}\n"
        "    {%- if message['role'] == 'system' -%}\n        {%- set ns.found = true -%}\n    {%- endif -%}\n"
        "{%- endfor -%}\n{{bos_token}}{%- if not ns.found -%}\n{{'You are a coding assistant.\\n'}}\n{%- endif %}\n"
        "{%- for message in messages %}\n    {%- if message['role'] == 'system' %}\n{{ message['content'] }}\n"
        "    {%- else %}\n        {%- if message['role'] == 'user' %}\n"
        "{{'### Instruction:\\n' + message['content'] + '\\n'}}\n        {%- else %}\n"
        "{{'### Response:\\n' + message['content'] + '\\n<|EOT|>\\n'}}\n        {%- endif %}\n    {%- endif %}\n"
        "{%- endfor %}\n{% if add_generation_prompt %}\n{{'### Response:'}}\n{% endif %}",
        "<s>",
        "</s>",
    ),
    "qwen": (
        "{%- if tools %}\n    {{- '<|im_start|>system\\n' }}\n    {%- for tool in tools %}\n"
        "        {{- tool | tojson }}\n    {%- endfor %}\n{%- else %}\n"
        "    {%- if messages[0]['role'] == 'system' %}\n"
        "        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n    {%- else %}\n"
        "        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}\n    {%- endif %}\n{%- endif %}\n"
        "{%- for message in messages %}\n"
        "    {%- if (message.role == \"user\") or (message.role == \"system\" and not loop.first) or "
        "(message.role == \"assistant\" and not message.tool_calls) %}\n"
        "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
        "    {%- elif message.role == \"tool\" %}\n"
        "        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != \"tool\") %}\n"
        "            {{- '<|im_start|>user' }}\n        {%- endif %}\n"
        "        {{- '\\n<tool_response>\\n' }}\n        {{- message.content }}\n        {{- '\\n</tool_response>' }}\n"
        "        {%- if loop.last or (messages[loop.index0 + 1].role != \"tool\") %}\n"
        "            {{- '<|im_end|>\\n' }}\n        {%- endif %}\n    {%- endif %}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
        "",
        "<|im_end|>",
    ),
    "thinking": (
        "{%- for message in messages %}{%- set content = message.content %}"
        "{%- if message.role == 'assistant' and '</think>' in content %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
        "{{- '<|im_start|>' ~ message.role ~ '\\n' ~ content.rstrip() ~ '<|im_end|>\\n' }}"
        "{%- if loop.last and not content.endswith('.') %}{{- 'open' }}{%- break %}{%- endif %}{%- endfor %}",
        "",
        "",
    ),
    "json": (
        "{{ messages | tojson }}{% for message in messages %}\n{{ message['content'] | upper | length }} "
        "{{ message.content.startswith('h') }} {{ message.get('name', 'nobody') }}"
        "{{ message.items() | list | length }}\n{% endfor %}end\n",
        "",
        "",
    ),
}


def message(role, content):
    return {"role": role, "content": content}


CONVERSATIONS = [
    [message("user", "hi")],
    [message("user", "  two spaces, a\ttab, and a newline at the end \n")],
    [message("system", "be brief"), message("user", "hi"), message("assistant", "hello."), message("user", "go on")],
    [message("user", "a"), message("assistant", "<think>hm</think>\n\nb"), message("user", "c \"quoted\" \\ <b> é 🦀")],
    [message("user", ""), message("assistant", ""), message("user", "[INST] x [/INST] <s>")],
    [message("assistant", "first")],
    [message("user", "a"), message("user", "b")],
    [message("user", "a"), message("assistant", "b"), message("tool", "1"), message("tool", "2"), message("user", "c")],
]


def raise_exception(text):
    raise TemplateError(text)


def main():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = raise_exception
    lines = []
    for name, (source, bos, eos) in TEMPLATES.items():
        template = environment.from_string(source)
        for messages in CONVERSATIONS:
            case = {"name": name, "template": source, "bos": bos, "eos": eos, "messages": messages}
            try:
                case["text"] = template.render(
                    messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos
                )
            except TemplateError as error:
                case["error"] = error.message
            lines.append(json.dumps(case, ensure_ascii=False))
    path = pathlib.Path(__file__).with_name("expected.jsonl")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} cases in {path}")


if __name__ == "__main__":
    main()
