"""Reasoning is taken from a reply; what is left is what it answers."""

from __future__ import annotations

import time

import pytest

from chip_core.evaluation.text.replies import strip_reasoning

WITH = {
    "<think>no dog? yes, one.</think>\n\nYes": "Yes",
    "<think></think>\n\nYes": "Yes",
    "<THINKING>\nA or B\n</THINKING>\n**C**": "**C**",
    "<reasoning>no</reasoning><answer>yes</answer>": "<answer>yes</answer>",
    "◁think▷no◁/think▷yes": "yes",
    "[THINK]no[/THINK]yes": "yes",
    "<thought>\nno\n</thought>\nyes": "yes",
    '<think step="1">no</think> yes': "yes",
    "&lt;think&gt;no&lt;/think&gt;yes": "yes",
    "<seed:think>no</seed:think>yes": "yes",
    "<|begin_of_thought|>no<|end_of_thought|>yes": "yes",
    "<|START_THINKING|>no<|END_THINKING|>yes": "yes",
    "<unused94>thought\nno<unused95>yes": "yes",
    "<|channel>thought\nno<channel|>yes": "yes",
    "<|channel|>analysis<|message|>no<|end|><|start|>assistant<|channel|>final<|message|>yes"
    "<|return|>": "yes",
    "<|channel|>analysis no dog <|channel|>final yes": "yes",
    "analysisWe look: no. Answer.assistantfinalYes": "Yes",
    "Thinking...\nno\n...done thinking.\n\nyes": "yes",
    "```thinking\nno\n```\nyes": "yes",
    "<SUMMARY>no</SUMMARY><CAPTION>no</CAPTION><REASONING>no</REASONING>"
    "<CONCLUSION>A</CONCLUSION>": ("<CONCLUSION>A</CONCLUSION>"),
    # The chat template writes the opening mark.
    "Let me look: no, wait.\n</think>\n\nYes": "Yes",
    "no\n◁/think▷\nYes": "Yes",
    # Cut at the longest answer: there is none.
    "<think>Let me look. Yes": "",
    "<think>Let me look. Yes</think>": "",
    "<|channel|>analysis<|message|>Yes, I think": "",
    # Nested, repeated, behind the answer.
    "<think>a<think>b</think>c</think>yes": "yes",
    "<think>no</think>maybe<think>no</think> yes": "maybe yes",
    "Yes.\n<think>was that right? no": "Yes.",
    "Yes.<think>a<think>no</think>no</think>": "Yes.",
    "<thinking>no</think>yes": "yes",
    # Never closed, yet the answer is marked as one.
    "<think>no <answer>yes</answer>": "<answer>yes</answer>",
    "<think>I shall write <answer>yes</answer> if it is there; so": "",
}
WITHOUT = (
    "",
    " Yes \n",
    "I think there is a dog.",
    "My reasoning: no. Answer: yes",
    "Thinking...\nyes",
    "analysis of the image: yes",
    "```json\n[1]\n```",
    "a < b and thinking > c",
)


@pytest.mark.parametrize(("text", "answer"), WITH.items())
def test_reasoning_is_taken_away(text: str, answer: str) -> None:
    assert strip_reasoning(text) == answer


@pytest.mark.parametrize("text", WITHOUT)
def test_a_reply_without_reasoning_is_itself(text: str) -> None:
    assert strip_reasoning(text) == text


@pytest.mark.parametrize(
    "piece",
    ["<think>", "</think>", " ", "<", "\n", "<answer>", "<|channel|>", "```think\n", "&lt;"],
)
def test_a_million_characters_take_no_time(piece: str) -> None:
    start = time.process_time()
    strip_reasoning("<think>" + piece * (1_000_000 // len(piece)))
    assert time.process_time() - start < 10  # about 1 s; what grows with the square takes hours
