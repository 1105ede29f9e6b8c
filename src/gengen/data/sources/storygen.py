"""A seeded grammar of little stories whose worth is known: what post-training is proven on.

A story has a hero, an animal, an object and a turn, and ends happily or sadly. `gold` says what it is truly worth; no
training sees that but through the preferences drawn from it. The parts of the data are disjoint by (animal,
object).
"""

import hashlib
import math
import random
import re
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, TypeVar

from gengen.errors import UserError

Item = TypeVar("Item")

FORMAT = 2  # raise it when the same index would give another story for pretraining
EXAMPLES_FORMAT = 3  # likewise for the examples of later stages; 3: what is held out is in two parts
NAME, LICENCE = f"storygen {FORMAT}, a seeded grammar of stories", "Apache-2.0 (made here)"
PRETRAIN_HAPPY, SFT_HAPPY, PAIR_HAPPY = 0.3, 0.5, 0.5  # share of stories that end happily
SFT_MISSES, PAIR_MISSES = (
    0.35,
    0.25,
)  # how often a requested word is replaced: what is imitated is not yet what is asked
REPEATS, BREAKS_OFF = 0.2, 0.15  # in pairs: how often a sentence comes twice, and the end is missing
LABEL_SCALE = 1.175
"""k of P(the first is called the better) = sigmoid(k * gap of gold): it makes the standard deviation of k * gap about
2 in these pairs.
"""
COUNTS = {"conversations": 3000, "preferences": 4000, "prompts": 2000}
"""Examples for training, of each kind."""
HELD_OUT = {"val": 408, "test": 512}
"""Examples of any kind for validation and for the final figures: six of each pair at most, each with a prompt of its
own.
"""
STORIES = 20_000  # for pretraining, unless said otherwise

_TABLE = """
animal bear bird bunny cat chick cow crab deer dog dove duck fish fox frog goat goose hare hen horse kitten lamb
  lion mole monkey mouse panda pig puppy rabbit sheep tiger turtle;
object ball balloon basket bell blanket book boat box bucket button cake candle cart coin cup drum flag flute hat
  key kite lamp map mirror nut pebble ribbon rope shell spoon toy whistle;
name Tom Lily Max Mia Ben Sue Tim Anna Sam Lucy Jack Rosie Bob Molly Leo Daisy Finn Ruby Hugo Nina Rex Tilly Gus Pam
  Kit Zoe Ned Eva;
place garden forest park river meadow barn hill lake village beach field cave market castle bridge school yard
  valley pond desert island;
manner little small big brave shy young clever silly kind gentle funny quiet tiny fluffy lazy hungry sleepy quick
  wise polite strong;
look red blue green yellow shiny new round golden wooden silver pretty soft heavy bright magic pink white black warm
  purple square;
friend friend mother father sister brother teacher farmer baker queen king boy girl wizard sailor giant doctor cook
  dancer painter;
weather sunny rainy windy cold hot snowy cloudy foggy stormy;
feeling curious worried excited tired nervous calm bored ready thirsty;
time day morning night evening summer winter spring week;
took carried pushed pulled rolled brought dragged moved threw;
watched saw liked wanted loved watched touched cleaned painted admired;
helped found fixed saved returned mended caught washed shared repaired;
broke broke lost stole hid dropped crushed tore spoiled ruined;
joyful happy glad proud joyful cheerful merry delighted thankful;
rejoiced smiled laughed danced sang cheered clapped hugged giggled;
sorry sad upset lonely sorry unhappy gloomy hurt miserable;
wept cried wept sighed sobbed sulked moaned frowned whimpered"""
WORDS = {key: words for key, *words in map(str.split, _TABLE.split(";"))}
ANIMALS, OBJECTS = WORDS["animal"], WORDS["object"]
HAPPY, SAD = WORDS["joyful"] + WORDS["rejoiced"], WORDS["sorry"] + WORDS["wept"]
OPENINGS = (
    "One {time} {name} the {manner} {animal} went out.",
    "{name} was a {manner} {animal} from the {place}.",
    "Once there was a {manner} {animal} named {name}.",
    "In the {place} lived {name} the {manner} {animal}.",
)
OBJECT = (
    "{name} had a {look} {object} at home.",
    "There {name} found a {look} {object}.",
    "{name} loved to play with a {look} {object}.",
    "A {friend} gave {name} a {look} {object}.",
)
MIDDLES = (
    "{name} {took} it to the {place}.",
    "It was {weather} and {name} felt {feeling}.",
    "{name} met a {friend} by the {place}.",
    "The {friend} {watched} it very much.",
    "{name} sat to write a story about it.",
    "They said please tell the story of it.",
)
TURNS = {
    True: ("Then a {friend} {helped} it for {name}.", "A {friend} came and they {helped} it together."),
    False: ("Then a {friend} {broke} it in the {place}.", "But the wind came and {broke} it."),
}
ENDINGS = (
    "In the end {name} {deed} and was {mood}.",
    "{name} was {mood} and {deed} all {time}.",
    "They went home and {deed}.",
)
PROMPTS = (
    "write a story about a {animal} with a {object}",
    "tell a story about a {animal} with a {object}",
    "please write a story of a {animal} and a {object}",
    "please tell a story of a {animal} and a {object}",
    "write about a {animal} who had a {object}",
    "tell the story of a {animal} who had a {object}",
)

_ALL = sorted(product(ANIMALS, OBJECTS), key=lambda pair: hashlib.sha256(" ".join(pair).encode()).digest())
PAIRS = {"sft": _ALL[:512], "preference": _ALL[512:870], "val": _ALL[870:938], "test": _ALL[938:]}
"""(animal, object) of each part: 50, 35, 7 and 8 % of all 1,024. Settings are chosen on val; what is reported is
measured on test.
"""


def pick(draw: random.Random, items: Sequence[Item]) -> Item:
    """Return one of a sequence, by `random()` alone, which Python promises to keep stable."""
    return items[int(draw.random() * len(items))]


def story(draw: random.Random, animal: str, thing: str, happy: bool) -> list[str]:
    """Four to six sentences, about 40 words."""
    mood, deed = ("joyful", "rejoiced") if happy else ("sorry", "wept")
    chosen = {"animal": [animal], "object": [thing], "name": [pick(draw, WORDS["name"])]}
    words = WORDS | chosen | {"mood": WORDS[mood], "deed": WORDS[deed]}
    between = sorted(MIDDLES, key=lambda _: draw.random())[: pick(draw, range(3))]
    plan = [
        pick(draw, OPENINGS),
        pick(draw, OBJECT),
        *sorted(between, key=MIDDLES.index),
        pick(draw, TURNS[happy]),
        pick(draw, ENDINGS),
    ]
    return [line.format_map({key: pick(draw, options) for key, options in words.items()}) for line in plan]


def documents(count: int) -> Iterator[str]:
    """Stories for pretraining: no prompts, all pairs, mostly sad."""
    for i in range(count):
        draw = random.Random(f"pretrain {i}")
        animal, thing = pick(draw, _ALL)
        yield " ".join(story(draw, animal, thing, draw.random() < PRETRAIN_HAPPY))


def requested(prompt: str) -> tuple[str, str]:
    """Return the (animal, object) that a prompt asks for: the first it names of each."""
    words = re.findall("[a-z]+", prompt.lower())
    animal, thing = (next((word for word in words if word in known), "") for known in (ANIMALS, OBJECTS))
    if not animal or not thing:
        raise UserError(f"storygen: {prompt!r} asks for no animal and object of its grammar; {PROMPTS[0]!r} does")
    return animal, thing


def coverage(prompt: str, response: str) -> float:
    """Return the share of the two requested words that are in the response."""
    words = set(re.findall("[a-z]+", response.lower()))
    return sum(word in words for word in requested(prompt)) / 2


def gold(prompt: str, response: str, ended: bool) -> float:
    """The true worth: 2 [happy ending] + share of the requested words - 0.5 (repeated sentences) - [not ended], at
    most 3.

    An ending is happy if the last sentence has a happy word and no sad one. A sentence is repeated as often as it
    comes again.
    """
    sentences = [" ".join(sentence.lower().split()) for sentence in re.split("[.!?]", response) if sentence.strip()]
    last = set(re.findall("[a-z]+", sentences[-1])) if sentences else set()
    happy = not last.isdisjoint(HAPPY) and last.isdisjoint(SAD)
    return 2.0 * happy + coverage(prompt, response) - 0.5 * (len(sentences) - len(set(sentences))) - (not ended)


def requested_words(prompt: str, response: str, ended: bool) -> float:
    """The reward of that name: 1 if both requested words are in a response that ended, else 0."""
    return float(ended and coverage(prompt, response) == 1)


def label(gap: float, uniform: float) -> bool:
    """Bradley-Terry: whether the first is called the better. gap: LABEL_SCALE * (its gold - the other's); uniform: in
    [0, 1).
    """
    return uniform < 1 / (1 + math.exp(-gap))


def misheard(draw: random.Random, animal: str, thing: str, share: float) -> tuple[str, str]:
    """The requested words, some of them replaced."""
    animal = pick(draw, ANIMALS) if draw.random() < share else animal
    return animal, pick(draw, OBJECTS) if draw.random() < share else thing


def flawed(draw: random.Random, animal: str, thing: str) -> tuple[str, bool]:
    """(response, whether it ended): a story with the flaws that `gold` knows."""
    sentences = story(draw, *misheard(draw, animal, thing, PAIR_MISSES), draw.random() < PAIR_HAPPY)
    if draw.random() < REPEATS:
        sentences.insert(twice := pick(draw, range(len(sentences))), sentences[twice])
    words, ended = " ".join(sentences).split(), draw.random() >= BREAKS_OFF
    return " ".join(words if ended else words[: pick(draw, range(len(words) // 2, len(words)))]), ended


def preference(draw: random.Random, prompt: str) -> dict[str, Any]:
    """A pair of responses, labelled."""
    first, second = (flawed(draw, *requested(prompt)) for _ in range(2))
    better = label(LABEL_SCALE * (gold(prompt, *first) - gold(prompt, *second)), draw.random())
    (chosen, chosen_ended), (rejected, rejected_ended) = (first, second) if better else (second, first)
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "chosen_ended": chosen_ended,
        "rejected_ended": rejected_ended,
    }


def examples(kind: str, part: str) -> Iterator[dict[str, Any]]:
    """Records of conversations, preferences or prompts; part: train, val or test, of which no two share a pair."""
    pairs = PAIRS[part if part in HELD_OUT else "sft" if kind == "conversations" else "preference"]
    for i in range(HELD_OUT.get(part, COUNTS[kind])):
        turn, at = divmod(i, len(pairs))
        draw, (animal, thing) = random.Random(f"{kind} {part} {i}"), pairs[at]
        prompt = PROMPTS[(turn + at) % len(PROMPTS)].format(animal=animal, object=thing)
        if kind == "conversations":
            answer = " ".join(story(draw, *misheard(draw, animal, thing, SFT_MISSES), draw.random() < SFT_HAPPY))
            yield {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}
        else:
            yield preference(draw, prompt) if kind == "preferences" else {"prompt": prompt}
