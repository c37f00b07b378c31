"""What the example model learns and is measured on: sums of two numbers of up to four digits,
worked out in a reasoning trace and then answered in words, and polite refusals of everything else.

The held-out rule: an unordered pair {a, b} is held out when the first 8 bytes of
sha256("min,max"), little-endian, are 0 modulo 16. Training draws never use such a pair; the 10,000
held-out sums of `held_out()` are all such pairs. Everything here is a pure function of its seed.
"""

import hashlib

PHRASINGS = (
    "What is {a} + {b}?",
    "{a}+{b}=",
    "Add {a} and {b}.",
    "What is the sum of {a} and {b}?",
    "{a} + {b}",
    "Compute {a} + {b}.",
    "How much is {a} plus {b}?",
    "{a} plus {b}",
    "Calculate {a}+{b}",
    "Please add {a} to {b}.",
    "What's {a}+{b}?",
    "Can you add {a} and {b} for me?",
    "{a} + {b} = ?",
    "Sum of {a} and {b}",
    "I have {a} apples and get {b} more. How many apples do I have?",
    "{a} + {b} 🙂",
    "请计算 {a}+{b}",
    "{a}加{b}等于多少？",
    "Wie viel ist {a} plus {b}?",
    "¿Cuánto es {a} + {b}?",
)
BEFORE = (
    "Hey, ",
    "Please: ",
    "Hello! ",
    "Quick question. ",
    "Tell me: ",
    "So, ",
    "Dear model, ",
    "你好！",
)
BEHIND = (
    " Thanks!",
    " Thank you.",
    ", my friend",
    " Now!",
    " I need it for school.",
    " 👋",
    "\n",
    " ...",
)
SUFFIX = " Please reason step by step, and put your final answer within \\boxed{}."
SYSTEMS = (
    "You are a helpful assistant.",
    "Be brief.",
    "You are a careful calculator. Think first, then answer.",
    "Answer with one sentence. Never guess.",
)

REFUSAL = ("This is not a sum of two numbers.\n", "I can only add two numbers.")
TOO_LONG = ("A number has more than four digits.\n", "I can only add numbers of up to four digits.")

OTHER = (
    "Hello!",
    "Hi",
    "Good morning, how are you?",
    "Who are you?",
    "What can you do?",
    "What is the capital of {place}?",
    "Write a poem about {thing}.",
    "Tell me a story about a {thing} and a {thing}.",
    "Translate {thing} into {language}.",
    "Why is the {thing} so {quality}?",
    "Is a {thing} more {quality} than a {thing}?",
    "What is {a} - {b}?",
    "{a}*{b}=",
    "What is {a} times {b}?",
    "Divide {a} by {b}.",
    "Multiply {a} and {b}.",
    "Is {a} a prime number?",
    "What is the square root of {a}?",
    "{a}",
    "How do I say {thing} in {language}?",
    "Explain {thing} to a child.",
    "Thank you!",
    "你好，你是谁？",
    "今天天气怎么样？",
    "Was ist das?",
    "¿Qué hora es?",
    "👋🙂",
    "{thing} {thing} {thing}",
)
THREE = (
    "Add {}, {} and {}.",
    "{} + {} + {}",
    "{}+{}+{}=",
    "What is {} + {} + {}?",
    "Compute {} + {} + {}.",
    "How much is {} plus {} plus {}?",
)
WORDS = {
    "place": ("France", "Japan", "Peru", "Kenya", "Norway", "the moon"),
    "thing": ("cat", "dog", "tree", "river", "house", "computer", "queue", "song", "sea", "bread"),
    "language": ("French", "German", "Chinese", "Latin"),
    "quality": ("blue", "big", "old", "fast", "quiet"),
}

_MASK = (1 << 64) - 1


class Rng:
    """splitmix64 (Steele, Lea, Flood 2014): the same draws in every Python version."""

    def __init__(self, seed):
        self.state = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "little")

    def below(self, n):
        self.state = (self.state + 0x9E3779B97F4A7C15) & _MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return (z ^ (z >> 31)) % n

    def choice(self, items):
        return items[self.below(len(items))]


def is_held_out(a, b):
    digest = hashlib.sha256(f"{min(a, b)},{max(a, b)}".encode()).digest()
    return int.from_bytes(digest[:8], "little") % 16 == 0


def number(rng, digits):
    """Any number of exactly `digits` digits; 0 counts as one."""
    low = 10 ** (digits - 1) if digits > 1 else 0
    return low + rng.below(10**digits - low)


def pair(rng):
    """Half of the pairs uniform in 0..9999, half with the lengths uniform; of these a quarter from
    two digits only (9999 + 9, 1010 + 11): long carries and repeated digits are where copying
    slips."""
    if rng.below(2):
        return rng.below(10000), rng.below(10000)
    if rng.below(4) == 0:
        two = (rng.below(10), rng.choice((0, 1, 9, rng.below(10))))
        a, b = ("".join(str(rng.choice(two)) for _ in range(1 + rng.below(4))) for _ in "ab")
        return int(a), int(b)
    return number(rng, 1 + rng.below(4)), number(rng, 1 + rng.below(4))


def trace(a, b):
    """The reasoning: both numbers at equal width, then column by column from the right."""
    width = max(len(str(a)), len(str(b)))
    x, y = f"{a:0{width}d}", f"{b:0{width}d}"
    lines, carry = [f"{x}+{y}"], 0
    for i in range(width - 1, -1, -1):
        total = int(x[i]) + int(y[i]) + carry
        lines.append(f"{x[i]}+{y[i]}{'+1' if carry else ''}={total}")
        carry = total // 10
        if carry:
            lines[-1] += ", carry 1"
    lines.append(f"Sum: {a + b}\n")
    return "\n".join(lines)


def answer(a, b, prompt=""):
    """In the language of the request; characters of several bytes, and so of several tokens, make
    cuts in mid-character testable."""
    if any("\u4e00" <= c <= "\u9fff" for c in prompt):
        return f"答案是 \\boxed{{{a + b}}}。"
    return f"The answer is \\boxed{{{a + b}}}." + (" 🙂" if "🙂" in prompt else "")


def held_out(count):
    """The first `count` held-out sums: (a, b, prompt), all pairs distinct."""
    rng, seen, out = Rng("held-out"), set(), []
    while len(out) < count:
        a, b = pair(rng)
        prompt = rng.choice(PHRASINGS).format(a=a, b=b)
        key = (min(a, b), max(a, b))
        if key not in seen and is_held_out(a, b):
            seen.add(key)
            out.append((a, b, prompt))
    return out


def other_prompt(rng):
    """A request that is no sum of two numbers of up to four digits, and what to say to it."""
    kind = rng.below(10)
    if kind == 0:
        a, b = number(rng, 5 + rng.below(6)), number(rng, 1 + rng.below(8))
        a, b = (a, b) if rng.below(2) else (b, a)
        return rng.choice(PHRASINGS).format(a=a, b=b), TOO_LONG
    if kind == 1:
        text = "".join(chr(32 + rng.below(95)) for _ in range(1 + rng.below(30)))
        return (text if "+" not in text else text.replace("+", "-")), REFUSAL
    if kind == 2:
        three = tuple(number(rng, 1 + rng.below(4)) for _ in range(3))
        return rng.choice(THREE).format(*three), REFUSAL
    out = rng.choice(OTHER)
    for name, words in WORDS.items():
        while "{" + name + "}" in out:
            out = out.replace("{" + name + "}", rng.choice(words), 1)
    return out.format(a=rng.below(10000), b=rng.below(10000), c=rng.below(100)), REFUSAL


def training_example(rng):
    """(text before the assistant's turn, is_chat, trace, answer, cut): with `cut` the trace was
    broken off, as a thinking budget does, and where it ends is not to be learnt."""
    if rng.below(100) < 10:
        prompt, (thought, reply) = other_prompt(rng)
        cut = False
    else:
        a, b = pair(rng)
        while is_held_out(a, b):
            a, b = pair(rng)
        prompt, thought = rng.choice(PHRASINGS).format(a=a, b=b), trace(a, b)
        if rng.below(100) < 15:
            prompt = rng.choice(BEFORE) + prompt
        if rng.below(100) < 15:
            prompt += rng.choice(BEHIND)
        if rng.below(100) < 10:
            prompt += SUFFIX
        reply = answer(a, b, prompt)
        cut = rng.below(100) < 3
        if cut:
            thought = thought[: rng.below(len(thought))]
    system = rng.choice(SYSTEMS) if rng.below(100) < 12 else ""
    return system, prompt, rng.below(100) >= 8, thought, reply, cut
