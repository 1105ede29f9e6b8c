"""A reward of your own: what an answer is worth, as a function that you register.

Copy this file into the folder you work in, change it, and name it on the command line:

    python scripts/train.py stage=ppo init_from=runs/sft data=prompts stage.reward=brief plugins=[own_reward]

`stage.reward=runs/rm stage.reward=0.5*on_topic` is a weighted sum; `stage=grpo`, `best_of=8 reward=brief` of
scripts/sample.py and `reward=brief` of scripts/pairs.py take the same names.

A reward is called with each prompt, the response to it, and whether the response came to its end within
stage.max_tokens. It returns a number, or None where it cannot say: such an answer is not trained on. It must depend on
its arguments alone, or a run that is stopped and resumed would no longer equal one that never stopped.
"""

from gengen.registry import register_reward

WORDS = 20  # that a brief answer has at most


@register_reward("brief")
def brief(prompt: str, response: str, ended: bool) -> float:
    """Return 1 for an answer of up to WORDS words, less for every word more; 0 at least."""
    excess = len(response.split()) - WORDS
    return max(0.0, 1 - max(0, excess) / WORDS)


@register_reward("on_topic")
def on_topic(prompt: str, response: str, ended: bool) -> float | None:
    """Return the share of the prompt's longer words that the response has; None for a prompt that has none."""
    asked = {word for word in prompt.lower().split() if len(word) > 3}
    return len(asked & set(response.lower().split())) / len(asked) if asked else None
