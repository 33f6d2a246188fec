"""Chat templates in the manner of some families of models, and a tokenizer that has their tokens."""

from transformers import Qwen2Tokenizer

from tests.helpers.models import byte_tokenizer

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
HYBRID = CHATML.replace("assistant\\n' }}", "assistant\\n' }}"
                        "{%- if enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}")
REASONER = CHATML.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")  # opens the tag by itself
HEADERS = """\
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if messages[0].role == 'system' %}
    {%- set system, rest = messages[0].content, messages[1:] %}
{%- else %}
    {%- set system, rest = '', messages %}
{%- endif %}
{{- '<|header|>system<|/header|>\\n\\nToday: ' + date_string + '\\n\\n' + system + '<|eot|>' }}
{%- for message in rest %}
    {{- '<|header|>' + message.role + '<|/header|>\\n\\n' + message.content | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header|>assistant<|/header|>\\n\\n' }}{%- endif %}
"""
NO_SYSTEM = "{%- if messages[0].role == 'system' %}{{- raise_exception('no system role here') }}{%- endif %}" + CHATML
SILENT = "{%- set messages = messages | rejectattr('role', 'equalto', 'system') | list %}" + CHATML
PLAIN = """\
{%- for message in messages %}{{- '### ' + message.role + '\\n' + message.content + '\\n\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '### assistant\\n' }}{%- endif %}
"""
SPELLED = PLAIN.replace("message.content + '", "message.content + '### end ")  # an end that is no token


def chat_tokenizer(template: str | None) -> Qwen2Tokenizer:
    """A token a byte, and one for each of the marks; <|begin|> begins a text."""
    tokenizer = byte_tokenizer("<think> we")
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<|header|>", "<|/header|>", "<|eot|>"], special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer
