"""Words and value makers shared by the corpus and the task; every list is this project's own."""

from __future__ import annotations

import random
from collections.abc import Callable

Draw = Callable[[random.Random], str]


def words(text: str) -> tuple[str, ...]:
    """Split a block of words; an underscore stands for a space inside an entry.

    Args:
        text: entries separated by blanks.

    Returns:
        The entries in their written order.
    """
    return tuple(entry.replace("_", " ") for entry in text.split())


SHE = words(
    "Ada Agnes Alma Anka Asta Beata Bela Berit Bria Cara Celia Clea Cora Dara Delia Dina Dora Edda Edith Elin "
    "Ella Elsa Enid Esme Etta Fanny Flora Freya Gerda Greta Hanna Hazel Hedda Helga Hilda Ida Ilka Ina Inga Iris "
    "Isla Ivy Jana Jette Jonna Judith Karin Katla Kira Lara Lena Lidia Linnea Lisbet Lotte Lucia Luna Maren Marit "
    "Marta Maud Mila Mina Mira Moira Nadia Nella Nina Nora Odette Olga Olive Orla Paula Petra Pia Qira Ragna Rika "
    "Rina Rosa Ruth Sanna Selma Signe Silke Sonja Stella Sunna Tamar Tekla Thea Tilda Tove Ulla Una Vera Vesna "
    "Vilma Wanda Willa Xenia Ylva Yrsa Zelda Zora"
)
HE = words(
    "Abel Adam Alan Albin Anton Arlo Arne Axel Basil Benno Bertil Birk Boris Bruno Casper Cato Colin Conrad Dag "
    "Dario Denis Dirk Edgar Edvin Egon Elias Emil Enzo Erik Ernst Falk Felix Finn Frans Fritz Gavin Georg Gilbert "
    "Gorm Gustav Hagen Hannes Harald Hektor Henrik Hugo Igor Ingmar Ivan Ivo Jakob Jens Joel Jonas Jorn Julian "
    "Karl Kaspar Klaus Knut Lars Leif Leo Linus Loren Ludo Lukas Magnus Malte Marek Milo Moritz Nils Niklas Odin "
    "Olaf Oskar Otto Owen Pavel Per Piet Quint Ralf Rasmus Rolf Ruben Rufus Samson Sander Sigurd Simon Sixten "
    "Soren Stig Sven Tarik Theo Tibor Timo Toke Tomas Ulf Urban Valdo Viggo Viktor Walter Werner Wim Xander York "
    "Yuri Zeno"
)
HEADS = words(
    "Al Amber Arn Ash Bar Bex Birch Black Bram Brand Brook Cal Car Clay Cold Cop Cray Dal Den Dun Ebb Eld Elm "
    "Fair Fal Farn Fen Flint Fox Gar Glen Gold Grim Hal Harn Hart Haw Hol Horn Ives Jar Kel Kest Kirn Lamb Lark "
    "Lin Long Lor Mal Mar Merr Mill Moor Mor Nor Oak Old Or Pel Pen Quil Rav Red Rim Rook Ross Sand Sel Shel Sil "
    "Stan Stone Sund Tal Tan Thorn Tor Tre Ul Val Var Wal Well Wes Whit Wil Win Wren Yar Yel Zan"
)
TAILS = words(
    "acre berg borne bridge brook bury by cott croft dale den don feld field ford gate grove ham hurst ing land "
    "leigh ley low lock man mark mere mond more ness nor ow ridge row sey shaw side son stead stone strom ton "
    "vale ver wald wall well wick wood worth"
)
ONSETS = words("b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh st t th tr v w y z")
VOWELS = words("a a a e e e i i o o u ai ea ie oo")
CODAS = words("b ck d k l ll m n n nd r r rn s sk t th v x z")
ENDS = words("a a o e i en er us ik ar im on el un eth is")

WAYS = words(
    "Lane Street Road Square Hill Row Gate Bridge Wharf Yard Court Market Quay Mews Steps Green Corner Walk "
    "Arcade Terrace"
)
SHAPES = words(
    "bowl stool lantern kettle basket box chair table bench ladle tray vase jug plate cup clock lamp mirror frame "
    "chest shelf ladder bucket barrel crate rope hammer saw plane chisel rake spade hoe sieve funnel hook hinge "
    "lock key bell whistle flute drum harp kite sled cart wheel oar net anchor sail tent blanket cushion rug "
    "scarf cap coat glove boot belt purse satchel bracelet brooch ring button comb brush broom candlestick "
    "inkwell pen ruler globe map puzzle doll puppet top marble abacus bookend doorstop trivet cradle birdhouse "
    "planter sundial weathervane teapot pitcher mortar grinder press loom spindle"
)
FORMS = words(
    "folding round narrow wide tall low small large heavy light carved plain painted polished woven curved square "
    "hanging standing portable double single hollow solid slim deep shallow sturdy delicate long short twisted "
    "ribbed smooth striped hinged nested stacking rocking swivel travel garden kitchen garret harbor market "
    "winter summer festival school parlor porch cellar field river mountain corner pocket"
)
MATERIALS = words(
    "oak ash walnut cherry maple beech birch pine cedar willow elm larch bamboo cork brass copper bronze iron "
    "steel tin pewter silver zinc lead glass crystal clay stoneware porcelain slate marble granite sandstone "
    "leather felt wool linen cotton silk hemp jute canvas horn bone shell amber wax paper straw reed rattan"
)
TINTS = words("pale dark deep light dusty bright soft warm cool smoky clear faded")
HUES = words(
    "red blue green yellow orange purple brown gray black white pink teal rust ochre indigo violet cream scarlet "
    "crimson olive coral sand plum moss ivory honey charcoal turquoise"
)
GOODS = words(
    "apples pears plums cherries figs lemons onions leeks carrots beets turnips cabbages beans peas lentils "
    "mushrooms walnuts almonds chestnuts eggs loaves rolls cheeses herrings mussels crabs candles matches nails "
    "screws hooks buttons ribbons needles spools ropes sacks jars lids corks bricks tiles planks seeds bulbs "
    "roses tulips daisies feathers pencils stamps envelopes maps kettles spoons plates cups lamps brushes soaps "
    "towels blankets stones shells marbles coins barrels baskets hinges bolts"
)
FOODS = words(
    "soup stew bread porridge pie cake pancakes dumplings salad cheese rice noodles jam tea broth pudding toast "
    "omelet pickles biscuits honey butter cider milk chowder roast_beets baked_apples fried_fish bean_paste "
    "plum_tart"
)
ANIMALS = words(
    "cat dog goat hen goose duck crow owl fox hare mouse badger otter heron pony donkey sheep cow calf lamb robin "
    "swallow toad hedgehog squirrel bee moth snail tortoise magpie"
)
GREENS = words(
    "beans peas carrots beets kale chard onions garlic leeks squash pumpkins tomatoes peppers cucumbers radishes "
    "lettuce spinach mint thyme sage basil parsley dill currants strawberries"
)
FLOWERS = words("roses lilies tulips irises poppies asters daisies lavender ivy ferns")
PLANTS = GREENS + FLOWERS
JOBS = words(
    "baker weaver potter smith carpenter gardener miller fisher sailor teacher doctor tailor clerk porter painter "
    "mason glazier farmer shepherd beekeeper printer binder cook driver pilot nurse singer fiddler clockmaker "
    "shoemaker saddler cooper tinker ferryman postman lamplighter librarian surveyor roofer plumber"
)
KIN = words("cousin neighbor friend partner helper teacher twin guest tenant lodger")
ROOMS = words("kitchen cellar attic hall parlor porch yard shed barn stable workshop study pantry loft garden office")
SPOTS = words(
    "harbor bridge mill market station school library church inn bakery forge well pond orchard meadow quarry "
    "lighthouse ferry square park museum theater post_office town_hall tower canal dock river shore hill wood"
)
RIDES = words("train bus ferry cart tram boat bicycle wagon coach sledge")
SKIES = words("clear gray cloudy bright dull misty hazy stormy calm blue heavy low")
WINDS = words("north south east west northeast northwest southeast southwest")
RAINS = words("rain drizzle sleet snow hail fog mist frost sunshine thunder")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
SEASONS = words("spring summer autumn winter")
TIMES = words("morning noon afternoon evening night dawn dusk")
GOOD = words("glad happy proud calm cheerful hopeful content pleased relieved delighted grateful merry")
BAD = words("sad tired worried cross lonely puzzled upset nervous cold hungry sorry bored")
ADJ = words(
    "old new quiet busy little big kind clever gentle patient careful brave honest-looking careless shy loud "
    "famous modest simple strange lovely fine rough neat dusty damp dry warm cool dark bright plain empty crowded "
    "narrow steep"
)
ADV = words("slowly quickly quietly gently carefully softly gladly kindly firmly calmly proudly eagerly at_once again")
NUMBER = words("two three four five six seven eight nine ten eleven twelve")
COINAGE = words("crowns marks florins pence shillings ducats thalers guilders coppers")


def coin(rng: random.Random) -> str:
    """Invent a capitalized name of two or three syllables, which only a copy can get right."""
    middle = rng.choice(ONSETS) + rng.choice(VOWELS) if rng.random() < 0.35 else ""
    close = rng.choice(CODAS) if rng.random() < 0.4 else ""
    start, end = rng.choice(ONSETS) + rng.choice(VOWELS), rng.choice(ONSETS) + rng.choice(ENDS)
    return (start + close + middle + end).capitalize()


def surname(rng: random.Random) -> str:
    """Draw a family name: joined parts, or an invented one."""
    return rng.choice(HEADS) + rng.choice(TAILS) if rng.random() < 0.65 else coin(rng)


def person(rng: random.Random) -> tuple[str, str, bool]:
    """Draw a person.

    Args:
        rng: source of chance.

    Returns:
        First name, family name, and whether the pronoun is ``she``.
    """
    she = rng.random() < 0.5
    first = rng.choice(SHE if she else HE) if rng.random() < 0.85 else coin(rng)
    return first, surname(rng), she


def town(rng: random.Random) -> str:
    """Draw the name of a town."""
    name = rng.choice(HEADS) + rng.choice(TAILS) if rng.random() < 0.65 else coin(rng)
    return rng.choice(("Upper ", "Lower ", "Port ", "New ", "East ", "West ")) + name if rng.random() < 0.12 else name


def street(rng: random.Random) -> str:
    """Draw the name of a street, yard or bridge."""
    return f"{town(rng)} {rng.choice(WAYS)}"


def item(rng: random.Random) -> str:
    """Draw a thing that someone could make, without its material."""
    return f"{rng.choice(FORMS)} {rng.choice(SHAPES)}"


def color(rng: random.Random) -> str:
    """Draw a color, mostly of two words."""
    return f"{rng.choice(TINTS)} {rng.choice(HUES)}" if rng.random() < 0.6 else rng.choice(HUES)


def price(rng: random.Random) -> str:
    """Draw a price with two decimals."""
    return f"{rng.randint(1, 99)}.{rng.randrange(0, 100, 5):02d}"


def clock(rng: random.Random) -> str:
    """Draw a time of day on a 12-hour clock."""
    return f"{rng.randint(1, 12)}.{rng.randrange(0, 60, 5):02d}"


def code(rng: random.Random) -> str:
    """Draw a short mark of a letter and figures."""
    return f"{rng.choice('ABCDEFGHKLMNPRSTVWXZ')}{rng.randint(10, 999)}"


def one_of(options: tuple[str, ...]) -> Draw:
    """Make a drawer of one entry of a list.

    Args:
        options: entries to draw from, all equally likely.

    Returns:
        A function from a source of chance to one entry.
    """
    return lambda rng: rng.choice(options)


DRAWS: dict[str, Draw] = {
    "coin": coin,
    "town": town,
    "street": street,
    "item": item,
    "color": color,
    "price": price,
    "clock": clock,
    "code": code,
    "count": lambda rng: str(rng.randint(2, 99)),
    "few": lambda rng: str(rng.randint(2, 9)),
    "year": lambda rng: str(rng.randint(1790, 1999)),
    "shape": one_of(SHAPES),
    "form": one_of(FORMS),
    "stuff": one_of(MATERIALS),
    "hue": one_of(HUES),
    "goods": one_of(GOODS),
    "food": one_of(FOODS),
    "animal": one_of(ANIMALS),
    "plant": one_of(PLANTS),
    "greens": one_of(GREENS),
    "job": one_of(JOBS),
    "kin": one_of(KIN),
    "room": one_of(ROOMS),
    "spot": one_of(SPOTS),
    "ride": one_of(RIDES),
    "sky": one_of(SKIES),
    "wind": one_of(WINDS),
    "rain": one_of(RAINS),
    "day": one_of(DAYS),
    "month": one_of(MONTHS),
    "season": one_of(SEASONS),
    "time": one_of(TIMES),
    "good": one_of(GOOD),
    "bad": one_of(BAD),
    "adj": one_of(ADJ),
    "adv": one_of(ADV),
    "number": one_of(NUMBER),
    "money": one_of(COINAGE),
}
