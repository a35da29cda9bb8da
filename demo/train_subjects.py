"""What the demo model can draw: emoji file names (as in the iconify sets) and the words people use for them."""

# One subject a row: "icon file: name, other name, ...". The first name is the subject's label in tests and sheets.
_TABLE = """
cat-face: cat, kitten
dog-face: dog, puppy
lion: lion
tiger-face: tiger
bear: bear
panda: panda
fox: fox
rabbit-face: rabbit, bunny
pig-face: pig
frog: frog
unicorn: unicorn
front-facing-baby-chick: chick
penguin: penguin
owl: owl
turtle: turtle
octopus: octopus
crab: crab
butterfly: butterfly
honeybee: bee, honeybee
lady-beetle: ladybug, ladybird
red-apple: red apple, apple
green-apple: green apple
banana: banana
watermelon: watermelon
grapes: grapes
strawberry: strawberry
pineapple: pineapple
tomato: tomato
carrot: carrot
mushroom: mushroom
cheese-wedge: cheese
hamburger: hamburger, burger
pizza: pizza
french-fries: french fries, fries
doughnut: donut, doughnut
soft-ice-cream: ice cream
hot-beverage: coffee, cup of coffee
smiling-face-with-smiling-eyes: smiling face, smile
face-with-tears-of-joy: laughing face
smiling-face-with-heart-eyes: heart eyes face, face in love
smiling-face-with-sunglasses: cool face, face with sunglasses
crying-face: crying face, sad face
angry-face: angry face
astonished-face: surprised face
smiling-face-with-horns: devil
ghost: ghost
alien: alien
robot: robot
skull: skull
pile-of-poo: poo
jack-o-lantern: pumpkin, jack o lantern
automobile: red car, car
airplane: airplane, plane
rocket: rocket
sailboat: sailboat, boat
house: house
soccer-ball: soccer ball, football
basketball: basketball
pool-8-ball: eight ball
guitar: guitar
balloon: balloon
key: key
locked: lock, padlock
light-bulb: light bulb
envelope: envelope, letter
crown: crown
gem-stone: diamond
bomb: bomb
teddy-bear: teddy bear
christmas-tree: christmas tree
evergreen-tree: tree
cactus: cactus
rose: rose
sunflower: sunflower
sun: sun
crescent-moon: moon
star: star
cloud: cloud
rainbow: rainbow
snowflake: snowflake
snowman: snowman
high-voltage: lightning
fire: fire, flame
droplet: water drop
ringed-planet: planet
broken-heart: broken heart
closed-book: red book
blue-book: blue book
green-book: green book
red-heart: red heart, heart
orange-heart: orange heart
yellow-heart: yellow heart
green-heart: green heart
blue-heart: blue heart
purple-heart: purple heart
pink-heart: pink heart
black-heart: black heart
red-circle: red circle
yellow-circle: yellow circle
green-circle: green circle
blue-circle: blue circle
red-square: red square
blue-square: blue square
"""

SUBJECTS: dict[str, list[str]] = {
    icon: [name.strip() for name in names.split(",")]
    for icon, names in (row.split(": ") for row in _TABLE.strip().splitlines())
}

# Backgrounds a caption can name; white stands for "nothing said" as well.
COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "red": (214, 64, 64),
    "orange": (250, 160, 70),
    "yellow": (250, 220, 90),
    "green": (96, 184, 100),
    "blue": (84, 150, 232),
    "purple": (150, 100, 200),
    "pink": (248, 170, 200),
    "grey": (150, 150, 150),
    "black": (24, 24, 24),
}
