"""What the shop sells: art prints, in words and colours. Prices are euros, as text, so that they stay exact."""

from typing import NamedTuple


class Print(NamedTuple):
    sku: str
    name: str
    category: str
    price: str
    description: str


PRINTS = (
    Print("LS-101", "Low tide, early", "landscapes", "38.00", "Wet sand, three bands of light and nobody awake yet."),
    Print("LS-102", "The far ridge", "landscapes", "42.50", "Seven blues of distance, one behind the other."),
    Print("LS-103", "Barley in June", "landscapes", "36.00", "A field that moves like water under a white sky."),
    Print(
        "LS-104", "Fjord, standing still", "landscapes", "48.00", "Cold water and warm stone, printed in nine layers."
    ),
    Print("LS-105", "Road to the salt pans", "landscapes", "34.90", "Late sun, flat land, a long way to go."),
    Print("LS-106", "After the snow", "landscapes", "44.00", "The quiet morning when every hill has the same colour."),
    Print("BO-201", "Fern study", "botanicals", "29.50", "A single frond, drawn from the stem outwards."),
    Print("BO-202", "Eucalyptus", "botanicals", "31.00", "Grey-green leaves, as they fall when you set them down."),
    Print("BO-203", "Wild carrot", "botanicals", "27.80", "The umbrella of a meadow, counted and drawn."),
    Print("BO-204", "Olive branch", "botanicals", "33.00", "Silver on the underside, where the wind shows it."),
    Print("BO-205", "Water lily", "botanicals", "35.50", "Round leaves on black water, seen from a bridge."),
    Print("BO-206", "Willow in wind", "botanicals", "30.00", "Long lines which never cross."),
    Print("GE-301", "Overlap", "geometry", "24.00", "Circles that share what they have."),
    Print("GE-302", "Stair, seen from above", "geometry", "26.50", "A spiral of rectangles that never arrives."),
    Print("GE-303", "Nine squares", "geometry", "22.00", "Almost a grid, which is the interesting part."),
    Print("GE-304", "Arc and plumb line", "geometry", "25.90", "A quarter circle and the straight line it leans on."),
    Print("GE-305", "Tangram harbour", "geometry", "28.00", "Sails, if you want them to be."),
    Print("GE-306", "Concentric", "geometry", "23.50", "Rings of a tree that was made of paper."),
    Print("NS-401", "Perseids", "night-sky", "39.00", "An August night, twelve minutes, one sheet."),
    Print("NS-402", "Moon over the roofs", "night-sky", "41.00", "Full, low, and larger than it ought to be."),
    Print("NS-403", "Southern lights", "night-sky", "46.50", "Green curtains, seen once from a ship."),
    Print("NS-404", "The long exposure", "night-sky", "43.00", "Stars that drew circles while we waited."),
    Print("NS-405", "Comet, leaving", "night-sky", "37.50", "It will be back in four hundred years."),
    Print("NS-406", "Lighthouse at two", "night-sky", "40.00", "One beam, one second of it."),
)

PALETTES = {
    "landscapes": ("#f4ead9", "#e8c39e", "#c98f6b", "#7d8f94", "#4c6673", "#2b3f4e"),
    "botanicals": ("#f3f1e4", "#cbd5b1", "#93a97b", "#5f7f5c", "#3d5a47", "#243b31"),
    "geometry": ("#f6efe6", "#f0b95b", "#e0714f", "#b6455a", "#3f6c8f", "#22384f"),
    "night-sky": ("#f5e6b8", "#9fb6c9", "#5a7397", "#33497a", "#1e2b55", "#101833"),
}

FIRST_NAMES = (
    "Ada", "Amélie", "Anselm", "Beatriz", "Björn", "Chiara", "Daniel", "Edith", "Elif", "Farid", "Freya", "Giulia",
    "Hanna", "Hugo", "Inès", "Ivo", "Jana", "João", "Kofi", "Lena", "Liam", "Linnea", "Mateo", "Mira",
    "Nadia", "Noah", "Olivia", "Pavel", "Priya", "Rosa", "Samir", "Søren", "Tamar", "Theo", "Yara", "Zoë",
)  # fmt: skip
LAST_NAMES = (
    "Almeida", "Andersen", "Bauer", "Beaumont", "Castillo", "Dahl", "Fischer", "García", "Haas", "Hughes", "Ivarsson",
    "Jansen", "Keller", "Kowalski", "Lefèvre", "Lindqvist", "Marino", "Mensah", "Moreau", "Müller", "Novak",
    "O'Brien", "Okafor", "Pereira", "Quinn", "Rossi", "Sørensen", "Sato", "Silva", "Tanaka", "Varga", "Weiß",
)  # fmt: skip
CITIES = (
    "Amsterdam", "Antwerp", "Bergen", "Bologna", "Bordeaux", "Copenhagen", "Dublin", "Ghent", "Gothenburg", "Graz",
    "Hamburg", "Kraków", "Leipzig", "Lisbon", "Lyon", "Málaga", "Porto", "Tallinn", "Turin", "Uppsala", "Vienna",
    "Zürich",
)  # fmt: skip
