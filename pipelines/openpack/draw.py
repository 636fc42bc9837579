"""Draws the simulated workplace: one worker behind a bench whose state persists. Pictures only: no time, no files.

What is drawn is what a camera would see: where the worker stands, where the hands are, which tool they hold, and what
has happened to the box, the items, the labels, the order sheet and the back table. Nothing spells an operation.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

WIDTH, HEIGHT = 640, 480  # the coordinates below are in this picture
SHELF, BENCH_BOX, ITEMS, PRINTER, BACK_TABLE = (62, 225), (370, 320), (235, 335), (548, 292), (575, 205)
SHEET_NEAR, SHEET_FAR = (300, 378), (158, 340)  # beside the box, or at the far end of the bench
BACK_TABLE_HOLDS = 2  # boxes; with these the back table is full


@dataclass(frozen=True)
class Look:
    """How one worker and workplace look; drawn anew for each user, with small changes from session to session."""

    wall: Colour
    floor: Colour
    bench: Colour
    shirt: Colour
    skin: Colour
    hair: Colour
    cardboard: Colour
    shelf: Colour
    height: float = 1.0  # of the worker, relative
    reach: float = 1.0  # size of the hands' movements, relative
    shift: Point = (0.0, 0.0)  # of the camera, pixels
    zoom: float = 1.0
    clutter: tuple[tuple[float, float, float, Colour], ...] = ()  # x, y, size, colour of things that mean nothing


@dataclass(frozen=True)
class Bench:
    """What lies where. `box`: none, flat, open, closed or taped; positions are shares of a movement (0 to 1)."""

    items: tuple[Colour, ...] = ()
    items_in_box: int = 0
    tags_moved: float = 0.0  # share of the items' tags that stick on the order sheet
    box: str = "none"
    flaps: float = 0.0  # of an open box, 0 upright to 1 folded in; of a flat one, 0 flat to 1 half raised
    box_label: bool = False
    shipping_label: str = "none"  # none, printer or box
    box_at: float = 0.0  # 0 on the bench to 1 on the back table
    sheet_near: bool = False
    sheet_present: bool = True
    signed: float = 0.0
    stack: int = 0  # boxes on the back table


@dataclass(frozen=True)
class Pose:
    """The worker: where the body stands, where both hands are, what the right one holds."""

    body: Point
    left: Point
    right: Point
    tool: str = "none"  # none, tape, scanner, pen, label or item
    beam: bool = False


class Painter:
    """Draws frames of one session, size `width`×`height`; the unchanging ground is drawn once."""

    def __init__(self, look: Look, width: int = WIDTH, height: int = HEIGHT) -> None:
        self.look, self.size = look, (width, height)
        self._scale = width / WIDTH * look.zoom, height / HEIGHT * look.zoom
        self._ground = self._draw_ground()

    def frame(self, bench: Bench, pose: Pose) -> Image.Image:
        picture = self._ground.copy()
        self._draw = ImageDraw.Draw(picture)
        self._back_table(bench)
        self._body(pose)
        self._bench_top()
        self._sheet(bench)
        self._items(bench)
        if bench.box != "none":
            self._box(bench)
        if bench.shipping_label == "printer":
            self._rectangle((PRINTER[0], PRINTER[1] - 22), 34, 26, (250, 250, 250))
        self._arms(pose)
        return picture

    # --- shapes in scene coordinates ---

    def _at(self, x: float, y: float) -> Point:
        (dx, dy), (sx, sy) = self.look.shift, self._scale
        return (x - WIDTH / 2 + dx) * sx + self.size[0] / 2, (y - HEIGHT / 2 + dy) * sy + self.size[1] / 2

    def _polygon(self, points: list[Point], fill: Colour, outline: Colour | None = None) -> None:
        self._draw.polygon([self._at(*point) for point in points], fill, outline)

    def _rectangle(self, centre: Point, width: float, height: float, fill: Colour) -> None:
        (x, y), w, h = centre, width / 2, height / 2
        self._draw.rectangle([self._at(x - w, y - h), self._at(x + w, y + h)], fill, _darker(fill))

    def _disc(self, centre: Point, radius: float, fill: Colour) -> None:
        (x, y), r = centre, radius
        self._draw.ellipse([self._at(x - r, y - r), self._at(x + r, y + r)], fill)

    def _line(self, points: list[Point], width: float, fill: Colour) -> None:
        self._draw.line([self._at(*point) for point in points], fill, max(1, round(width * self._scale[0])))

    # --- the workplace ---

    def _draw_ground(self) -> Image.Image:
        look = self.look
        ground = Image.new("RGB", self.size, look.wall)
        self._draw = ImageDraw.Draw(ground)
        self._polygon([(-80, 430), (720, 430), (720, 560), (-80, 560)], look.floor)
        self._rectangle((SHELF[0], SHELF[1]), 110, 230, look.shelf)
        for row in range(4):
            for column in range(2):
                shade = (60 + 45 * row, 190 - 35 * row, 90 + 70 * column)
                self._rectangle((SHELF[0] - 24 + 48 * column, SHELF[1] - 84 + 56 * row), 38, 34, shade)
        for x, y, size, colour in look.clutter:
            self._rectangle((x, y), size, size, colour)
        return ground

    def _bench_top(self) -> None:
        look = self.look
        self._polygon([(135, 300), (560, 300), (600, 405), (110, 405)], look.bench, _darker(look.bench))
        self._polygon([(110, 405), (600, 405), (600, 425), (110, 425)], _darker(look.bench))
        self._rectangle(PRINTER, 50, 34, (70, 70, 78))

    def _back_table(self, bench: Bench) -> None:
        x, y = BACK_TABLE
        self._rectangle((x, y + 8), 130, 14, _darker(self.look.bench))
        for i in range(bench.stack):
            self._rectangle((x - 32 + 64 * i, y - 24), 56, 48, self.look.cardboard)
            self._rectangle((x - 32 + 64 * i, y - 30), 26, 18, (245, 245, 240))

    def _sheet(self, bench: Bench) -> None:
        if not bench.sheet_present:
            return
        x, y = SHEET_NEAR if bench.sheet_near else SHEET_FAR
        self._rectangle((x, y), 66, 46, (252, 252, 246))
        for i in range(round(bench.tags_moved * len(bench.items))):
            self._rectangle((x - 22 + 11 * i, y - 14), 9, 9, (240, 160, 40))
        if bench.signed > 0:
            self._line([(x - 26, y + 10), (x - 26 + 40 * bench.signed, y + 10)], 8, (30, 50, 170))
        if bench.signed >= 1:
            self._disc((x + 18, y + 6), 13, (205, 30, 40))

    def _items(self, bench: Bench) -> None:
        x, y = ITEMS
        for i, colour in enumerate(bench.items):
            if i < bench.items_in_box:
                continue
            spot = (x - 44 + 24 * i, y + (10 if i % 2 else -8))
            self._rectangle(spot, 22, 24, colour)
            if i >= round(bench.tags_moved * len(bench.items)):
                self._rectangle((spot[0], spot[1] - 4), 12, 10, (240, 160, 40))

    def _box(self, bench: Bench) -> None:
        (x0, y0), (x1, y1), share = BENCH_BOX, (BACK_TABLE[0] - 10, BACK_TABLE[1] - 20), bench.box_at
        x, y = x0 + (x1 - x0) * share, y0 + (y1 - y0) * share
        board, side, inside = self.look.cardboard, _darker(self.look.cardboard), (70, 48, 30)
        if bench.box == "flat":
            lift = 26 * bench.flaps
            self._polygon(
                [(x - 62, y + 30), (x + 62, y + 30), (x + 48, y + 6 - lift), (x - 48, y + 6 - lift)], board, side
            )
            return
        self._polygon([(x - 48, y - 20), (x + 48, y - 20), (x + 48, y + 34), (x - 48, y + 34)], board, side)
        if bench.box == "open":
            self._polygon([(x - 48, y - 20), (x + 48, y - 20), (x + 34, y - 40), (x - 34, y - 40)], inside, side)
            for i in range(bench.items_in_box):
                self._rectangle((x - 24 + 12 * i, y - 29), 11, 13, bench.items[i])
            out = 1 - bench.flaps
            self._polygon(
                [
                    (x - 48, y - 20),
                    (x - 34, y - 40),
                    (x - 44 - 26 * out, y - 44 - 20 * out),
                    (x - 58 - 26 * out, y - 30),
                ],
                board,
                side,
            )
            self._polygon(
                [
                    (x + 48, y - 20),
                    (x + 34, y - 40),
                    (x + 44 + 26 * out, y - 44 - 20 * out),
                    (x + 58 + 26 * out, y - 30),
                ],
                board,
                side,
            )
        else:
            self._polygon([(x - 48, y - 20), (x + 48, y - 20), (x + 34, y - 40), (x - 34, y - 40)], board, side)
            if bench.box == "taped":
                self._polygon([(x - 48, y - 26), (x + 48, y - 26), (x + 42, y - 34), (x - 42, y - 34)], (225, 215, 120))
        if bench.box_label:
            self._rectangle((x - 28, y + 12), 24, 22, (250, 235, 60))
        if bench.shipping_label == "box":
            self._rectangle((x + 18, y + 6), 42, 34, (250, 250, 250))

    # --- the worker ---

    def _body(self, pose: Pose) -> None:
        x, y = pose.body
        tall = self.look.height
        self._polygon([(x - 36, y), (x + 36, y), (x + 30, y + 190), (x - 30, y + 190)], self.look.shirt)
        self._disc((x, y - 30 * tall), 25 * tall, self.look.skin)
        self._polygon(
            [(x - 25, y - 34 * tall), (x + 25, y - 34 * tall), (x + 16, y - 58 * tall), (x - 16, y - 58 * tall)],
            self.look.hair,
        )

    def _arms(self, pose: Pose) -> None:
        x, y = pose.body
        for side, hand in ((-1, pose.left), (1, pose.right)):
            shoulder = (x + 33 * side, y + 14)
            elbow = ((shoulder[0] + hand[0]) / 2 + 14 * side, (shoulder[1] + hand[1]) / 2 + 16)
            self._line([shoulder, elbow, hand], 17, _darker(self.look.shirt))
            self._disc(hand, 12, self.look.skin)
        self._tool(pose)

    def _tool(self, pose: Pose) -> None:
        x, y = pose.right
        if pose.tool == "tape":
            self._rectangle((x, y + 6), 34, 22, (200, 40, 150))
        elif pose.tool == "scanner":
            self._rectangle((x, y + 4), 20, 30, (30, 30, 34))
            if pose.beam:
                self._line([(x, y + 16), (BENCH_BOX[0] - 28, BENCH_BOX[1] + 12)], 5, (250, 40, 30))
        elif pose.tool == "pen":
            self._line([(x, y), (x + 12, y - 24)], 6, (20, 40, 160))
        elif pose.tool == "label":
            self._rectangle((x, y + 8), 30, 24, (250, 250, 250))
        elif pose.tool == "item":
            self._rectangle((x, y + 10), 22, 24, (120, 60, 160))


def _darker(colour: Colour) -> Colour:
    return (int(colour[0] * 0.72), int(colour[1] * 0.72), int(colour[2] * 0.72))
