"""The corpus grammar: every rule is this project's own writing.

``<rule>`` expands to one alternative of that rule, ``[a|b|]`` to one of its choices, ``{kind}`` to a fresh value and
``{kind1}`` to the value that the document keeps under that number: a kept value written twice is what teaches a model
to copy. Persons keep ``{full1} {first1} {sur1} {he1} {him1} {his1}`` together.
"""

from __future__ import annotations

from lexicon import words

RULES: dict[str, tuple[str, ...]] = {}

# How often each kind of text comes up; a kind named twice comes twice as often.
RULES["document"] = words(
    "<portrait> <tale> <tale> <talk> <talk> <errand> <letter> <weather> <stall> <journey> <bench> <garden> "
    "<note> <note> <note> <note> <note> <ledger> <ledger> <quiz> <quiz> <retell> <retell> <rollcall> <rollcall> "
    "<recipe> <lost> <room> <shelf> <shelf>"
)

RULES["when"] = (
    "on {day}",
    "one {season} {time}",
    "that {time}",
    "early on {day}",
    "late in {month}",
    "in {month}",
    "last {day}",
    "every {day}",
    "before {time}",
    "just after {time}",
    "at {clock}",
    "on the {number}th day of {month}",
)

RULES["where"] = (
    "in {town1}",
    "near {street1}",
    "at the {spot1}",
    "by the {spot1}",
    "behind the {spot1}",
    "in the {room1}",
    "on {street1}",
)

RULES["aside"] = (
    "nobody [minded|noticed|said a word]",
    "the {animal} [slept|watched|did not move]",
    "it was {adj} work",
    "the {sky} sky did not help",
    "there was {rain} in the air",
    "the wind came from the {wind}",
    "it took until {time}",
    "the {spot} was {adj} and {adj}",
    "that is how things are [here|in {town1}]",
    "the bell rang {number} times",
    "someone was [singing|whistling|laughing] outside",
    "there was {food} on the stove",
)

RULES["mood"] = (
    "{good}",
    "{good}",
    "{good} and {good}",
    "{bad}",
    "{bad} and {bad}",
    "{bad} but {good}",
    "{adj} and {good}",
)

RULES["portrait"] = (
    "{full1} [is|was] a {job1} [in|from] {town1}. <trait1> <trait1> <habit1> <trait1>",
    "everyone in {town1} knows {full1}, the {job1}. <habit1> <trait1> <habit1>",
    "this is {first1}. {his1} full name is {full1}, and {he1} lives <where>. <trait1> <habit1> <trait1>",
    (
        "there are two people at the {spot1}, {full1} and {full2}. {first1} is a {job1} and {first2} is a "
        "{job2}. <trait1> <trait2> people in {town1} ask {first1} for [advice|{goods}] and {first2} for "
        "[help|{goods}]."
    ),
)

RULES["trait1"] = (
    "{first1} is {adj} and {adj}.",
    "{his1} {room} is {adj}, but {his1} {room} is {adj}.",
    "{he1} likes {food1}, and {food1} likes {him1} too.",
    "{first1} has a {hue1} coat and a {hue2} hat, and the {hue1} coat is the {adj} one.",
    "{he1} has one {animal1}, and the {animal1} is called {coin1}.",
    "{his1} {kin1} is {full3}, who works as a {job3}.",
    "{first1} was born in {year1}, in the year of the great {rain}.",
    "{he1} keeps {count1} {goods1} in the {room2}.",
    "few people know that {first1} [sings|dances|swims|counts {goods}] {adv}.",
)

RULES["trait2"] = (
    "{first2} is {adj} and {adj}.",
    "{his2} {room} is {adj}.",
    "{first2} keeps {few2} {goods2} [for luck|for guests|under the bed].",
    "{he2} has a {animal2} by the name of {coin2}, and {coin2} is {adj}.",
    "{first2} [is never|is always] {bad} when {first1} is near.",
)

RULES["habit1"] = (
    "on {day1} {he1} walks to the {spot2} and buys {goods1}; on {day2} {he1} stays at home.",
    "<when> {first1} [sits|reads|works|sleeps] <where>.",
    "at {clock1} {he1} drinks tea, never before {clock1}.",
    "when {rain} comes, {first1} [closes the windows|goes out {adv}|calls {coin1}|stays {good}].",
    "{he1} pays {price1} {money1} for {his1} room, and {price1} is {adj} for {town1}.",
    (
        "{first1} says that a good {job1} needs {number} things: [time|light|luck], [bread|rest|sleep] and a "
        "{adj} {shape1}."
    ),
)

RULES["tale"] = (
    "<open1> <want1> <trouble1> <help1> <end1>",
    "<open1> <trouble1> <help1> <end1>",
    "<open1> <want1> <trouble1> <try1> <help1> <end1>",
    "<open1> <want1> <try1> <end1>",
    "<open1> <speech1> <trouble1> <speech1> <help1> <speech1> <end1>",
)

RULES["open1"] = (
    "<when> {full1} went to the {spot1} with {his1} {kin1} {first2}.",
    "{first1} and {first2} lived in {town1}, <where>.",
    "there once was a {job1} named {first1} who had a {adj} {animal1}. The {animal1} was called {coin1}.",
    "<when>, {first1} the {job1} found a {item1} <where>.",
    "long ago, when {town1} was only a {spot1} and a {spot2}, {full1} came there with a {item1}.",
    "{first1} woke up <mood> because it was {day1}. <when> <aside>.",
    "<when> a {animal1} came to {town1}. It was {hue1}, and {first1} named it {coin1}.",
)

RULES["want1"] = (
    "{first1} wanted to [find|buy|make|mend|see] the {item1}, and {he1} wanted it before {time1}.",
    "more than anything, {first1} wished for a {item1} of {stuff1}.",
    "the plan was simple: walk to {town2}, sell the {goods1}, and come home by {time1}.",
    "{first1} had promised {first2} a {hue1} {shape1}, and a promise is a promise.",
    "{first2} asked for {food1}, but there was no {food1} left <where>.",
)

RULES["trouble1"] = (
    "but the {ride1} to {town2} was late, and {first1} was <mood>.",
    "then {rain1} came, and with the {rain1} came {bad} hours.",
    "but the {item1} was gone. {first1} looked in the {room1} and in the {room2}; it was in neither.",
    "sadly, the {item1} broke <when>, and {first2} was <mood>.",
    "the trouble was the price. A {item1} cost {price1} {money1}, and {first1} had only {few1} {money1}.",
    "a {animal2} had taken it, a {hue2} {animal2} with a {adj} face.",
    "the door of the {spot2} was locked, and only {full3} had the key.",
)

RULES["try1"] = (
    "first {he1} tried with a {shape}, then with a {shape}. <aside>.",
    '{he1} asked the {job2}. "Ask in {town2}," said the {job2}, so {first1} went to {town2}.',
    "{he1} waited {number} days <where>, and <aside>.",
    "{first1} counted the {goods1} {adv}: {few1} here, {few2} there. {few1} and {few2}, that was all.",
)

RULES["help1"] = (
    (
        '{full3} the {job3} heard of it and came {adv}. "Take my {shape3}," said {first3}, and {first1} took '
        "the {shape3}."
    ),
    ('{first2} had an idea. "{first1}," {he2} said, "look behind the {spot1}!" And behind the {spot1} it was.'),
    (
        "luckily a {adj} {job3} called {first3} passed by. {first3} [knew the way|had a {stuff3} key|was never "
        "in a hurry]."
    ),
    "in the end {first2} and {first1} did it together, {adv} and {adv}.",
    "{first1} wrote to {full3} in {town2}, and after {number} days {first3} wrote back.",
)

RULES["end1"] = (
    "so {first1} went home, and {first1} was <mood>.",
    "that {time} they all ate {food2} and talked about {coin1}.",
    "since then {first1} and {first3} are friends, and the {item1} stands in the {room1}.",
    "and if you go to {town1}, you can still see it.",
    "{first2} laughed, {first1} laughed, and <aside>.",
    "it cost {price1} {money1} in the end, and it was worth {price1}.",
    '"thank you, {first3}," said {first1}. "Thank {first2}," said {first3}.',
)

RULES["speech1"] = (
    '"<saying1>," said {first1}.',
    '"<saying1>," {first2} said {adv}.',
    '{first1} asked, "<asking1>?" {first2} answered, "<saying1>."',
    '"<asking1>?" asked {first2}. "<saying1>," said {first1}.',
)

RULES["saying1"] = (
    "we should go to {town1} <when>",
    "I have {few1} {goods1} and you have {few2}",
    "the {item1} is in the {room1}",
    "{first3} will know",
    "it is not far to {town2}",
    "my {kin1} had one made of {stuff1}",
    "I would pay {price1} for that",
    "that {animal1} is {adj}",
    "let us ask {full3}",
    "I am <mood>",
    "you are right, {coin1} is {adj}",
    "the {ride1} leaves at {clock1}",
    "there is {food1} at home",
    "be careful with the {hue1} one",
)

RULES["asking1"] = (
    "where is the {item1}",
    "have you seen {full3}",
    "what does a {item1} cost in {town1}",
    "who took the {goods1}",
    "when does the {ride1} leave",
    "is {town2} far from here",
    "do you like {food1}",
    "why are you so {bad}",
    "is it the {hue1} one or the {hue2} one",
    "can {first3} help us",
)

RULES["talk"] = (
    "<ask2>\n<ask2>",
    (
        "{first1}: [hello|good {time}|welcome], {first2}.\n{first2}: [hello|good {time}|thank you], "
        "{first1}.\n<ask2>\n{first1}: [thank you|good|I see|that is kind], {first2}."
    ),
    "<ask2>\n<ask2>\n<ask2>",
    "the {job1} and the {job2} met at the {spot1}.\n<ask2>\n<ask2>",
)

RULES["ask2"] = (
    (
        "{first1}: do you have {goods1} today?\n{first2}: yes, I have {count1} {goods1}, and they cost {price2} "
        "each.\n{first1}: then I take {few1} {goods1}.\n{first2}: {few1} {goods1}, here you are, {first1}."
    ),
    (
        "{first1}: what is the price of the {item1}?\n{first2}: the {item1}? That one is {price1} "
        "{money1}.\n{first1}: {price1}? That is {adj}.\n{first2}: not for {stuff1}, {first1}."
    ),
    (
        "{first1}: when does the {ride1} to {town1} leave?\n{first2}: the {ride1} to {town1} leaves at {clock1}, "
        "and the next {ride1} at {clock2}.\n{first1}: {clock1}, you say?\n{first2}: yes, {clock1}."
    ),
    (
        "{first1}: who made this {item1}?\n{first2}: {full3} made the {item1}, the {job3} from "
        "{town2}.\n{first1}: who is {first3}?\n{first2}: {full3} is my {kin1}."
    ),
    (
        "{first1}: where does {full3} live?\n{first2}: {first3} lives on {street1}. Go to {street1} and ask for "
        "{full3}.\n{first1}: {street1}, thank you.\n{first2}: yes, {street1}, by the {spot1}."
    ),
    (
        "{first1}: what is your {animal1} called?\n{first2}: the {animal1} is called {coin1}, and {coin1} is "
        "{adj}.\n{first1}: {coin1} is a {adj} name.\n{first2}: my {kin1} {first3} chose it. {first3} likes "
        "{coin1}."
    ),
    (
        "{first1}: is the {item1} made of {stuff1} or of {stuff2}?\n{first2}: it is made of [{stuff1}|{stuff2}]; "
        "only the {shape2} is made of {stuff3}."
    ),
    (
        "{first1}: what color is the {shape1}?\n{first2}: the {shape1} is {color1}, and the box is "
        "{color2}.\n{first1}: and the {color1} one?\n{first2}: the {color1} one is sold."
    ),
    (
        "{first1}: how many {goods1} are in the {room1}?\n{first2}: there are {count1} {goods1} in the {room1} "
        "and {count2} in the {room2}."
    ),
    "{first1}: is it far to {town2}?\n{first2}: {town2} is {number} miles from here.",
    "{first1}: where can I find the {job3}?\n{first2}: I do not know. Ask {full3} in {town2}.",
)

RULES["errand"] = (
    (
        "to buy: {few1} {goods1}, {few2} {goods2}, {few3} {goods3}.\n{first1} took the list to the {spot1}. "
        "{he1} came back with {few1} {goods1}, {few2} {goods2} and {few3} {goods3}. <aside>."
    ),
    (
        "shopping list of {full1}\n- {count1} {goods1}\n- {count2} {goods2}\n- {count3} {goods3}\n- one "
        "{shape1}\n{first1} forgot the {goods2}, so {he1} had {count1} {goods1}, {count3} {goods3} and the "
        "{shape1}, but no {goods2}."
    ),
    (
        "packed for {town1}: {goods1}, {goods2}, {goods3}, the {item1}. left at home: {goods4}. In {town1} "
        "{first1} needed {goods4}, of course, and nobody needed the {item1}."
    ),
    (
        "jobs for {day1}\n1. mend the {item1}\n2. write to {full2}\n3. bring {goods1} to {street1}\nBy {time} "
        "the {item1} was mended, {full2} had a letter, and the {goods1} were on {street1}."
    ),
)

RULES["letter"] = (
    "dear {first1},\n<line3> <line3> <line3>\n[Yours|With love|Your {kin2}|Many greetings], {first2}",
    (
        "{town1}, {month1} {year1}\nDear {first1},\n<line3> <line3> <line3> Say hello to {first3} from "
        "me.\n[Yours|Your {kin1}], {full2}"
    ),
    (
        "dear {full1},\nyou asked about the {item1}. <line3> <line3>\n[Yours truly|Kindly|With thanks], {full2}, "
        "{job2} in {town1}"
    ),
)

RULES["line3"] = (
    "I am now in {town1}, and {town1} is {adj}.",
    "the {ride1} came at {clock1} and we saw {full3} on it.",
    "{first3} sends you {few1} {goods1}; please send back {few2} {goods2}.",
    "the {item1} arrived, {color1} and {adj} as you said.",
    "it is {sky} here, with {rain1} from the {wind1}.",
    "thank you for the {goods1}, {first1}.",
    "we paid {price1} for the {item1}, not {price2} as you wrote.",
    "my {kin1} says the {stuff1} one is better than the {stuff2} one.",
    "please bring the {stuff1} {shape1} to {street1} on {day1}.",
    "yes, {day1} is good, and {street1} is easy to find.",
    "{coin1} is well and eats {food1} every {day}.",
    "I am <mood>, as always <where>.",
)

RULES["weather"] = (
    "weather for {town1}, {day1}: {sky} with {rain1}. Wind from the {wind1}. <sky4> <sky4>",
    "on {day1} it was {sky} in {town1} and {sky} in {town2}. <sky4> <sky4> <sky4>",
    (
        "the {time1} brought {rain1} to {town1}. <sky4> By {time2} the {rain1} was over, and {first1} "
        "[swept|dried|opened] the {room1}."
    ),
    (
        "in the {season1} of {year1} there was {rain1} for {number1} weeks. <sky4> People in {town1} still speak "
        "of {year1} and of the {number1} weeks of {rain1}."
    ),
)

RULES["sky4"] = (
    "in {town1} the {rain1} lasted until {clock1}.",
    "{town2} had {count1} degrees, {town1} had {count2}.",
    "the {wind1} wind took a {item1} from the {spot1}.",
    "{full1}, who measures such things, wrote {count1} in the book.",
    "after {clock1} no {rain1} was seen.",
    "tomorrow will be {sky}, says {first1}.",
    "the {ride1} to {town2} waited for the {rain1} to stop.",
    "from the {spot1} one could see {town2} under a {sky} sky.",
)

RULES["stall"] = (
    "market day in {town1}. <ware5> <ware5> <ware5>",
    "at the market on {street1} there are {number} stalls. <ware5> <ware5> <ware5> <aside>.",
    (
        "{full1} sells {goods1} on {street1}. <ware5> <ware5> At {clock1} {first1} packs the {goods1} and goes "
        "home to {town2}."
    ),
)

RULES["ware5"] = (
    ("{goods1} cost {price1} {money1}, {goods2} cost {price2}. So {goods1} are [cheaper|dearer] today, at {price1}."),
    "{first1} has {color1} {goods1} and {color2} {goods2}, and the {color1} ones sell first.",
    (
        '{full2} asks {price2} for a {stuff2} {shape2}. "{price2}!" says {first1}. "For {stuff2} that is '
        'fair," says {first2}.'
    ),
    "a {job3} buys {few3} {goods3} and pays {price3}; {price3} for {few3} is {adj}.",
    "the best {goods2} come from {town3}, and {first2} goes to {town3} every {day1}.",
    "whoever wants a {item1} must ask {full2}, for only {first2} has a {item1}.",
)

RULES["journey"] = (
    (
        "the {ride1} goes from {town1} to {town2} and on to {town3}. It leaves {town1} at {clock1}, comes to "
        "{town2} at {clock2} and reaches {town3} at {clock3}. <road6> <road6>"
    ),
    "{full1} set out from {town1} on {day1}. <road6> <road6> On {day2} {first1} saw the {spot1} of {town2}.",
    ("day one: {town1}. <road6> day two: {town2}. <road6> day three: {town3}. [I liked|we all liked] {town2} best."),
)

RULES["road6"] = (
    "in {town1} we ate {food1} at the {spot1}.",
    "the ticket to {town2} cost {price1} {money1}.",
    "at {clock2} the {ride1} stopped in {town2}, and {first1} bought {goods1}.",
    "{first2} got off in {town3}, for {his2} {kin1} lives on {street1}.",
    "between {town1} and {town2} there was only {rain1}.",
    "{first1} had a {color1} bag and {first2} a {color2} one; the {color1} bag was {adj}.",
    "a {job1} on the {ride1} spoke of {coin1}, a {spot2} in the {wind1}.",
    "from {town2} to {town3} it is {count1} miles, and {count1} miles are {adj} by {ride1}.",
)

RULES["bench"] = (
    "workshop of {full1}, {street1}. <work7> <work7> <work7>",
    "{first1} is making a {item1} for {full2}. <work7> <work7> <work7>",
    (
        "how {full1} makes a {item1}: first {he1} cuts the {stuff1}, then {he1} [warms|wets|rubs] the {stuff1}, "
        "and last {he1} paints it {color1}. <work7> <work7>"
    ),
)

RULES["work7"] = (
    "the {item1} is of {stuff1}, and {stuff1} is {adj} to [cut|bend|shape].",
    "it will be {color1}, since {first2} likes {color1}.",
    "job {code1} is for {full2}, job {code2} is for {full3}; {code1} comes first.",
    "{first1} takes {price1} {money1} for it, and {first2} pays {price1}.",
    "on the wall hang a {shape1}, a {shape2} and a {shape3}; the {shape2} is the {adj} one.",
    "{stuff1} comes from {town1}, {stuff2} comes from {town2}.",
    "there are {count1} {goods1} in the {adj} drawer, marked {code1}.",
    "the mark under the {shape1} reads {code1}, {year1}.",
    "in {year1} {first1} made the first one, also {color1}, also of {stuff1}.",
)

RULES["garden"] = (
    "garden book, {month1}. <bed8> <bed8> <bed8>",
    "{full1} has a garden in {town1}. <bed8> <bed8> <bed8>",
    (
        "<when> {first1} planted {plant1} and {first2} planted {plant2}. <bed8> <bed8> In {month2} the {plant1} "
        "were {adj} and the {plant2} were {adj}."
    ),
)

RULES["bed8"] = (
    "{count1} {plant1} stand by the {spot1}, {count2} {plant2} by the {room1}.",
    "the {plant1} need [water|sun|shade], the {plant2} need [rest|room|care].",
    "a {animal1} ate the {plant2}; {first1} saw the {animal1} at {clock1}.",
    "{color1} {plant1} do well here, {color2} {plant1} do not.",
    "{first1} traded {few1} {plant1} for {few2} {plant2}.",
    "seed packet {code1} holds {plant1}, packet {code2} holds {plant2}. {code1} was sown on {day1}.",
    "after the {rain1}, the {plant1} by the {spot1} were {adj}.",
)

RULES["rollcall"] = (
    (
        "in the row: {coin1}, {coin2}, {coin3}, {coin4}. From the left: {coin1}, {coin2}, {coin3}, {coin4}. "
        "Without {coin2}: {coin1}, {coin3}, {coin4}."
    ),
    (
        "names at the {spot1}: {full1}, {full2}, {full3}. Called again: {full1}, {full2}, {full3}. {first2} [was "
        "late|came first|said yes], {sur1} and {sur3} were not."
    ),
    (
        "codes {code1}, {code2}, {code3} and {code4} were read out, then read again: {code1}, {code2}, {code3}, "
        "{code4}. Only {code3} was wrong."
    ),
    "stops: {town1}, {street1}, {town2}, {street2}. Back again: {street2}, {town2}, {street1}, {town1}.",
    (
        "{color1}, {color2}, {color3}, says {first1}. {color1}, {color2}, {color3}, says {first2}. And last "
        "comes {color3}."
    ),
    (
        "prices: {price1}, {price2}, {price3}. Checked: {price1}, {price2}, {price3}. The lowest was "
        "[{price1}|{price2}|{price3}], said {full1}."
    ),
    (
        "{first1} said {coin1} and {first2} said {coin2}. {first3} said neither {coin1} nor {coin2}, but "
        "{coin3}. So: {first1} {coin1}, {first2} {coin2}, {first3} {coin3}."
    ),
    "read and repeat. {full1}, {stuff1}, {item1}, {street1}. {full1}, {stuff1}, {item1}, {street1}.",
    "read and repeat. {item1}, {color1}, {price1}, {full1}. {item1}, {color1}, {price1}, {full1}.",
)

RULES["recipe"] = (
    (
        "{food1} as made by {full1}: take {few1} {greens1}, {few2} {greens2} and {few3} {greens3}. Wash the "
        "{greens1}, cut the {greens3} and cook the {greens2} for {count1} minutes. Serve the {food1} "
        "[hot|cold|warm]."
    ),
    (
        "for {food1} {first1} needs {greens1}, {greens2} and {food2}. Without {greens1} it is not {food1}, says "
        "{first1}. <aside>."
    ),
)

RULES["lost"] = (
    (
        "lost <where>: a {color1} {item1} of {stuff1}. Who finds the {item1} may bring it to {full1}, {street1}. "
        "{first1} gives {price1} {money1} for it."
    ),
    (
        "found at the {spot1}: one {stuff1} {shape1}, {color1}, marked {code1}. Whoever lost a {color1} {shape1} "
        "should ask {full1} and name the mark. {full2} came, said {code1}, and got the {shape1}."
    ),
)

RULES["room"] = (
    (
        "in the {room1} stands a {item1} of {stuff1}. Beside the {item1} lies a {color1} {shape2}. {first1} put "
        "the {shape2} there, {first2} made the {item1}. <aside>."
    ),
    (
        "the {room1} of {full1} is {adj}. On the left is a {item1}, on the right a {item2}. The {item1} is "
        "{color1}; the {item2} is {color2}. {first1} uses the {item2} and only looks at the {item1}."
    ),
    (
        "from the window of the {room1} {first1} sees {town1}, and in {town1} the {spot1}, and at the {spot1} a "
        '{color1} {ride1}. "A {color1} {ride1}," {he1} says, "must be {first2} coming from {town2}."'
    ),
)
