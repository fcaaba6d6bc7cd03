"""Labeled notes and the sentences that use what they say: the part of the corpus that teaches values to travel."""

from __future__ import annotations

LABELS: dict[str, tuple[str, ...]] = {
    "item1": (
        "thing",
        "piece",
        "what",
        "article",
        "wanted",
        "object",
    ),
    "full1": (
        "seller",
        "by",
        "work of",
        "name",
        "from the hand of",
        "owner",
        "asked by",
        "signed",
    ),
    "stuff1": (
        "stuff",
        "made of",
        "body",
        "of",
        "built in",
    ),
    "price1": (
        "cost",
        "to pay",
        "sum",
        "worth",
        "asking",
        "fee",
    ),
    "color1": (
        "shade",
        "paint",
        "tone",
        "coat",
        "looks",
    ),
    "street1": (
        "where",
        "shop",
        "stands at",
        "address",
        "found at",
    ),
    "town1": (
        "town",
        "from",
        "home",
        "sent from",
    ),
    "town2": (
        "to",
        "sent to",
        "next stop",
    ),
    "day1": (
        "day",
        "due",
        "open on",
    ),
    "clock1": (
        "time",
        "hour",
        "at",
    ),
    "code1": (
        "mark",
        "number",
        "tag",
        "stamp",
    ),
    "year1": (
        "year",
        "since",
        "dated",
    ),
    "count1": (
        "count",
        "how many",
        "pieces left",
    ),
    "goods1": (
        "also",
        "box holds",
        "besides",
        "packed with",
    ),
    "coin1": (
        "called",
        "nickname",
        "watchword",
        "dog answers to",
    ),
    "full2": (
        "buyer",
        "for",
        "helper",
        "witness",
        "ask also",
    ),
    "food1": (
        "dish",
        "supper",
        "served with",
    ),
}

SENTENCES: tuple[str, ...] = (
    "{full1} has a {item1}.",
    "the {item1} belongs to {full1}.",
    "it was {full1} who brought the {item1}.",
    "you must ask {full1}.",
    "so {full1} is the one to ask.",
    "the {item1} is {color1}.",
    "the {color1} one is the {item1}.",
    "everything about it is {color1}.",
    "the {item1} is of {stuff1}.",
    "{stuff1}, no less, says {full1}.",
    "you pay {price1} for the {item1}.",
    "{price1} is the sum.",
    "it will be {price1}, not more.",
    "one finds the {item1} on {street1}.",
    "go to {street1}.",
    "the way leads to {street1}.",
    "on {street1} one may see it.",
    "{full1} can be found on {street1}.",
    "{full1} waits on {street1}.",
    "the shop of {full1} is on {street1}.",
    "{full1} lives in {town1}.",
    "it comes from {town1}.",
    "it goes from {town1} to {town2}.",
    "{town2} is where it goes.",
    "come on {day1}.",
    "on {day1} {full1} is there.",
    "at {clock1} the door opens.",
    "be there at {clock1}.",
    "on {day1} at {clock1} it begins.",
    "the mark is {code1}.",
    "look for {code1}.",
    "under {code1} you find the {item1}.",
    "it goes back to {year1}.",
    "{full1} began in {year1}.",
    "in {year1} it was new.",
    "there are {count1} of them.",
    "{count1} are left, says {full1}.",
    "the box holds {count1} {goods1}.",
    "there are {goods1} too.",
    "{goods1} come with the {item1}.",
    "people call it {coin1}.",
    "{coin1}, that is what {full1} says.",
    "the word is {coin1}.",
    "{full1} sells it to {full2}.",
    "{full2} knows {full1}.",
    "{full2} takes it.",
    "{full1} and {full2} agree.",
    "it is for {full2}.",
    "{full2} wants the {item1}.",
    "for supper there is {food1}.",
    "{full1} eats {food1}.",
    "{full2} cooks {food1} for {full1}.",
    "{full1} wants {price1} for the {item1} of {stuff1}.",
    "the {color1} {item1} of {full1} is of {stuff1}.",
    "{full1} keeps a {color1} {item1} on {street1}.",
    "for {price1} {full2} gets a {item1} from {full1}.",
    "the {item1}, {color1} and of {stuff1}, goes to {full2} for {price1}.",
    "on {street1} {full1} offers a {item1} for {price1}.",
    "a {item1} of {stuff1} waits on {street1}, and {full1} wants {price1} for it.",
    "{full1} from {town1} owns the {item1}, which is {color1}.",
    "in {year1} {full1} gave the {item1} the mark {code1}.",
    "the {item1} left {town1} on {day1} and came to {town2} at {clock1}.",
    "{full2} asked for {count1} {goods1} and a {item1}.",
    "nobody but {full1} has {stuff1} so {color1}.",
    "of {stuff1} it is, {color1} it looks, {price1} it costs.",
    "whoever goes to {street1} with {price1} comes home with a {item1}.",
    "{full1} of {street1} works in {stuff1}.",
    "since {year1} {full1} has worked with {stuff1} on {street1}.",
    "{full1} paints it {color1}, {full2} pays {price1}.",
    "in {color1}, the {item1} costs {price1}.",
    "{full2} sent {full1} to {street1} for a {item1}.",
    "they say the {item1} on {street1} is the work of {full1}.",
    "tell {full2} that the {item1} is {color1} and costs {price1}.",
    "{full1} will show you the {stuff1} {item1} on {street1}.",
    "I saw it: a {item1}, {color1}, {stuff1}, {price1}, by {full1}.",
    "with {price1} in hand {full2} walked to {street1}.",
)

OPENERS: tuple[str, ...] = (
    "the {item1}",
    "here is the {item1}",
    "one {item1}",
    "{full1}, then",
    "see the {item1}",
    "{full1} again",
    "they speak of the {item1}",
    "remember the {item1}",
)

CLAUSES: dict[str, tuple[str, ...]] = {
    "item1": (
        "which is a {item1}",
        "the {item1} first of all",
    ),
    "full1": (
        "brought by {full1}",
        "as {full1} says",
        "with the name of {full1} on it",
        "which {full1} keeps",
    ),
    "stuff1": (
        "{stuff1} all through",
        "cut from {stuff1}",
        "of good {stuff1}",
        "where {stuff1} is used",
    ),
    "price1": (
        "at {price1}",
        "not under {price1}",
        "which takes {price1}",
        "{price1} and no less",
    ),
    "color1": (
        "in {color1}",
        "painted {color1}",
        "{color1} all over",
        "of a {color1} tone",
    ),
    "street1": (
        "kept on {street1}",
        "with a door on {street1}",
        "to be had on {street1}",
        "just off {street1}",
    ),
    "town1": (
        "sent from {town1}",
        "known in {town1}",
    ),
    "town2": (
        "on its way to {town2}",
        "awaited in {town2}",
    ),
    "day1": (
        "due on {day1}",
        "shown every {day1}",
    ),
    "clock1": (
        "ready at {clock1}",
        "not before {clock1}",
    ),
    "code1": (
        "marked {code1}",
        "with the tag {code1}",
    ),
    "year1": (
        "dated {year1}",
        "in use since {year1}",
    ),
    "count1": (
        "{count1} in all",
        "one of {count1}",
    ),
    "goods1": (
        "packed with {goods1}",
        "{goods1} beside it",
    ),
    "coin1": (
        "known as {coin1}",
        "{coin1} to its friends",
    ),
    "full2": (
        "meant for {full2}",
        "which {full2} asked for",
    ),
    "food1": (
        "with {food1} on the side",
        "after the {food1}",
    ),
}

QUESTIONS: tuple[tuple[str, str], ...] = (
    (
        "whose is the {item1}?",
        "{full1} has it.",
    ),
    (
        "what does {full1} offer?",
        "a {item1}.",
    ),
    (
        "what is it made of?",
        "of {stuff1}.",
    ),
    (
        "what must one pay?",
        "{price1}.",
    ),
    (
        "and the color?",
        "{color1}.",
    ),
    (
        "where should I go?",
        "to {street1}.",
    ),
    (
        "where does it come from?",
        "from {town1}.",
    ),
    (
        "where does it go?",
        "to {town2}.",
    ),
    (
        "on which day?",
        "on {day1}.",
    ),
    (
        "at what hour?",
        "at {clock1}.",
    ),
    (
        "what is the mark?",
        "the mark is {code1}.",
    ),
    (
        "how old is it?",
        "it is from {year1}.",
    ),
    (
        "how many are there?",
        "{count1}.",
    ),
    (
        "what else is in the box?",
        "{goods1}.",
    ),
    (
        "what do they call it?",
        "{coin1}.",
    ),
    (
        "who takes it?",
        "{full2} does.",
    ),
    (
        "what is for supper?",
        "{food1}.",
    ),
    (
        "who is {full1}?",
        "the one with the {item1}.",
    ),
    (
        "what costs {price1}?",
        "the {item1}.",
    ),
    (
        "what is {color1}?",
        "the {item1} is.",
    ),
    (
        "who waits on {street1}?",
        "{full1} waits on {street1}.",
    ),
    (
        "is it {stuff1} or glass?",
        "it is {stuff1}.",
    ),
    (
        "do you know {full2}?",
        "yes, {full2} buys the {item1}.",
    ),
)

TITLES: tuple[str, ...] = (
    "note",
    "on a slip of paper",
    "pinned to the wall",
    "from the notebook",
    "written on the crate",
    "to remember",
    "card in the window",
    "short note for {full3}",
    "{first3} wrote this down",
    "on the door of the {spot1}",
    "notice in {town3}",
    "entry {code3}",
    "a paper found in the {room1}",
    "the label says",
)

BRIDGES: tuple[str, ...] = (
    "",
    "",
    "",
    "so",
    "that means",
    "in other words",
    "in short",
    "read aloud",
    "which is to say",
    "and so",
    "put simply",
    "{first3} read it and said",
    "as a tale",
)

ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "{first} {goods}, {price}",
        (
            "{first} pays {price} for {goods}",
            "{goods} for {first} cost {price}",
            "{price} from {first}",
        ),
    ),
    (
        "{town} at {clock}",
        (
            "at {clock} it is in {town}",
            "{town} comes at {clock}",
            "{clock}, that is {town}",
        ),
    ),
    (
        "{full}, {street}",
        (
            "{full} lives on {street}",
            "on {street} you meet {full}",
            "{street} is the home of {full}",
        ),
    ),
    (
        "{code} {item}",
        (
            "{code} is the {item}",
            "the {item} bears {code}",
            "{item} means {code}",
        ),
    ),
    (
        "{coin}, {hue}, {few}",
        (
            "{coin} has {few} and is {hue}",
            "{hue} is {coin} with {few}",
            "{few} go to {coin}",
        ),
    ),
    (
        "{full}, {item}",
        (
            "{full} made the {item}",
            "the {item} is by {full}",
            "for a {item} ask {full}",
        ),
    ),
    (
        "{item}, {stuff}, {price}",
        (
            "the {item} of {stuff} is {price}",
            "{price} buys the {item}",
            "{stuff} is used for the {item}",
        ),
    ),
)
