"""What the demo model can draw: emoji file names (as in the iconify sets) and the words people use for them."""

# One subject a row: "icon file: name, other name, ...". The first name is the subject's label in tests and sheets.
_TABLE = """
cat-face: cat, kitten
dog-face: dog, puppy
lion: lion
tiger-face: tiger
bear: bear
panda: panda
koala: koala
fox: fox
rabbit-face: rabbit, bunny
mouse-face: mouse
cow-face: cow
pig-face: pig
frog: frog
monkey-face: monkey
unicorn: unicorn
chicken: chicken
front-facing-baby-chick: chick
penguin: penguin
owl: owl
duck: duck
turtle: turtle
t-rex: dinosaur, t-rex
octopus: octopus
crab: crab
tropical-fish: tropical fish, fish
butterfly: butterfly
honeybee: bee, honeybee
lady-beetle: ladybug, ladybird
spider: spider
elephant: elephant
bat: bat
red-apple: red apple, apple
green-apple: green apple
lemon: lemon
banana: banana
watermelon: watermelon
grapes: grapes
strawberry: strawberry
cherries: cherries, cherry
pineapple: pineapple
tomato: tomato
eggplant: eggplant, aubergine
carrot: carrot
mushroom: mushroom
bread: bread
cheese-wedge: cheese
cooking: fried egg
hamburger: hamburger, burger
pizza: pizza
hot-dog: hot dog
french-fries: french fries, fries
doughnut: donut, doughnut
birthday-cake: birthday cake, cake
cupcake: cupcake
soft-ice-cream: ice cream
hot-beverage: coffee, cup of coffee
beer-mug: beer
smiling-face-with-smiling-eyes: smiling face, smile
grinning-face-with-big-eyes: happy face, grinning face
face-with-tears-of-joy: laughing face
smiling-face-with-heart-eyes: heart eyes face, face in love
smiling-face-with-sunglasses: cool face, face with sunglasses
crying-face: crying face, sad face
angry-face: angry face
nerd-face: nerd face
astonished-face: surprised face
clown-face: clown
smiling-face-with-horns: devil
ghost: ghost
alien: alien
robot: robot
skull: skull
pile-of-poo: poo
jack-o-lantern: pumpkin, jack o lantern
santa-claus: santa claus
automobile: red car, car
taxi: taxi
locomotive: train
airplane: airplane, plane
rocket: rocket
sailboat: sailboat, boat
house: house
castle: castle
soccer-ball: soccer ball, football
basketball: basketball
pool-8-ball: eight ball
guitar: guitar
bell: bell
balloon: balloon
wrapped-gift: gift, present
key: key
locked: lock, padlock
hammer: hammer
light-bulb: light bulb
umbrella: umbrella
pencil: pencil
mobile-phone: phone
laptop: laptop, computer
camera: camera
envelope: envelope, letter
crown: crown
top-hat: top hat
t-shirt: t-shirt, shirt
trophy: trophy
gem-stone: diamond
magnet: magnet
bomb: bomb
teddy-bear: teddy bear
christmas-tree: christmas tree
evergreen-tree: tree
cactus: cactus
rose: rose
sunflower: sunflower
four-leaf-clover: clover
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
globe-showing-europe-africa: earth, globe
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
