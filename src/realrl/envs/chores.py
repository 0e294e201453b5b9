"""Scripts for LIBERO's tasks (`realrl.envs.libero`): where the hand goes next follows from the state alone, so that a script takes over
anywhere, and tries again where something slipped."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from realrl.types import Array

_STEP, _TURN = 0.05, 0.5
"""What an action of 1 asks of the hand, m and rad."""
_DOWN = np.array([0.0, 0.0, -1.0])
OPEN, SHUT, STAY = -1.0, 1.0, 0.0


@dataclass(frozen=True)
class Seen:
    """A state, by name. turns: [3, 3]; gap: between the fingers, m; places: of things and furniture; slides: of drawers and knob."""

    hand: Array
    turn: Array
    gap: float
    places: dict[str, Array]
    turns: dict[str, Array]
    slides: Array


def _turn(axes: Array) -> Array:
    """The turn [3, 3] of which `axes` [6] has the first two columns."""
    x, y = axes[:3], axes[3:]
    return np.stack([x, y, np.cross(x, y)], -1)


def seen(state: Array, things: tuple[str, ...], furniture: tuple[str, ...], own: int) -> Seen:
    """A full state by its names."""
    places, turns, at = {}, {}, own
    for name in things:
        places[name], turns[name] = state[at:at + 3], _turn(state[at + 3:at + 9])
        at += 9
    for name in furniture:
        places[name] = state[at:at + 3]
        at += 3
    return Seen(state[:3], _turn(state[3:9]), float(state[9] - state[10]), places, turns, state[at:])


def _vector(turn: Array) -> Array:
    """A turn [3, 3] as axis times angle [3], below half a turn."""
    axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    size = float(np.linalg.norm(axis))
    found: Array = axis * (np.arctan2(size, float(np.trace(turn)) - 1.0) / max(size, 1e-9))
    return found


def posed(way: Array, across: tuple[float, float, float]) -> Array:
    """The hand's turn [3, 3] that points along `way` and opens its fingers along `across`, of both the nearer to how an episode begins,
    from where the wrist has room on either side."""
    x = np.array(across) - way * float(np.array(across) @ way)
    x = x / np.linalg.norm(x) * (1.0 if x[1] >= 0 else -1.0)
    return np.stack([x, np.cross(way, x), way], -1)


def to(s: Seen, place: Array, turn: Array, grip: float, pace: float = 1.0) -> Array:
    """The action [7] towards a pose. pace: of the largest motion."""
    go = np.clip(2.5 * (place - s.hand) / _STEP, -pace, pace)
    return np.array([*go, *np.clip(1.5 * _vector(turn @ s.turn.T) / _TURN, -0.6, 0.6), grip])


@dataclass(frozen=True)
class Hold:
    """How a thing is held. point: from its place, m, in the world; across: the way in which the fingers open; width: of what is between
    them, m."""

    point: tuple[float, float, float]
    across: tuple[float, float, float]
    width: float


def fetch(s: Seen, grasp: Array, across: tuple[float, float, float], clear: float) -> Array:
    """Open, to above the grasp [3], then down to it."""
    turn = posed(_DOWN, across)
    askew = float(np.linalg.norm(_vector(turn @ s.turn.T)))
    aside = float(np.linalg.norm((grasp - s.hand)[:2]))
    if aside < 0.012 and askew < 0.12 and s.gap > 0.07:
        return to(s, grasp, turn, OPEN, 0.6 if s.hand[2] < grasp[2] + 0.06 else 1.0)
    if aside > 0.03 and s.hand[2] < grasp[2] + clear - 0.03:
        return to(s, np.array([*s.hand[:2], grasp[2] + clear + 0.03]), s.turn, OPEN)
    return to(s, np.array([*grasp[:2], max(grasp[2] + 0.05, s.hand[2] if aside < 0.02 else grasp[2] + clear)]), turn, OPEN)


def carry(s: Seen, thing: str, hold: Hold, put: Array, travel: float, clear: float = 0.1) -> Array:
    """Take a thing and put it at `put` [3]. travel: how high it is carried, its place's z, m; clear: how far above it the hand comes."""
    place = s.places[thing]
    way, grasp = put - place, place + np.array(hold.point)
    aside, near = float(np.linalg.norm(way[:2])), float(np.linalg.norm(grasp - s.hand))
    turn = posed(_DOWN, hold.across)
    if aside < 0.015 and -way[2] < 0.012:  # it is there
        return to(s, s.hand if s.gap < 0.06 else s.hand + np.array([0.0, 0.0, 0.1]), turn, OPEN)
    if near > 0.03:
        return fetch(s, grasp, hold.across, clear)
    if s.gap > hold.width + 0.006:
        return fetch(s, grasp, hold.across, clear) if near > 0.014 and s.gap > 0.07 else to(s, grasp, turn, SHUT)
    if aside < 0.015:
        return to(s, s.hand + way, turn, SHUT, 0.4)
    if place[2] < travel - 0.02 and (aside > 0.06 or place[2] < put[2] + 0.03):
        return to(s, np.array([*s.hand[:2], s.hand[2] + travel - place[2] + 0.01]), turn, SHUT, 0.8)
    return to(s, s.hand + np.array([way[0], way[1], max(travel - place[2], 0.0)]), turn, SHUT, 0.8)


def tow(s: Seen, thing: str, put: Array) -> Array:
    """Draw a dish over the table by its rim from inside, which is as stable as a trailer: first past what lies in the way, then to `put`
    [2]."""
    place = s.places[thing]
    first = place[1] < put[1] - 0.01
    turn = posed(_DOWN, _ACROSS if first else _ALONG)  # closed fingers slip over the rim where they are narrow
    aside = float(np.linalg.norm(s.hand[:2] - place[:2]))
    askew = float(np.linalg.norm(_vector(turn @ s.turn.T)))
    if aside > 0.06 or s.hand[2] > place[2] + 0.035 or askew > 0.5:
        over = aside > 0.015 or askew > 0.3
        return to(s, place + np.array([0.0, 0.0, 0.08 if over else 0.012]), turn, SHUT, 0.8)
    stop = put + np.array([0.1, 0.01]) if first else put
    go = stop - place[:2]
    ahead = s.hand[:2] + 0.05 * go / max(float(np.linalg.norm(go)), 0.02)
    return to(s, np.array([*ahead, place[2] + 0.012]), turn, SHUT, 0.6)


def twist(s: Seen, knob: Array) -> Array:
    """Beside the knob's bar, then against its far end."""
    turn = posed(_DOWN, _ACROSS)
    off = s.hand - knob
    if off[2] < 0.055 and abs(off[0] - 0.03) < 0.02 and off[1] > -0.08:
        return to(s, np.array([knob[0] + 0.03, s.hand[1] + 0.04, knob[2] + 0.035]), turn, SHUT)
    above = float(np.linalg.norm(off[:2] - (0.03, -0.055))) > 0.012
    return to(s, knob + np.array([0.03, -0.055, 0.1 if above else 0.035]), turn, SHUT)


def draw(s: Seen, handle: Array) -> Array:
    """From the front, a finger above the handle's bar and one below it, shut, back."""
    turn = posed(np.array([0.0, -1.0, 0.0]), (0.0, 0.0, -1.0))
    off = handle - s.hand
    if abs(off[0]) < 0.03 and float(np.hypot(off[1], off[2])) < 0.02:
        held = s.gap <= 0.024
        return to(s, np.array([s.hand[0], s.hand[1] + 0.06 if held else handle[1], handle[2]]), turn, SHUT)
    askew = float(np.linalg.norm(_vector(turn @ s.turn.T)))  # the wrist reaches its stop before it is straight
    straight = abs(off[0]) < 0.03 and abs(off[2]) < 0.012 and askew < 0.25
    return to(s, handle if straight else handle + np.array([0.0, 0.13, 0.0]), turn, OPEN, 0.8)


def stow(s: Seen) -> Array:
    """Draw the top drawer out as far as the bowl is wide, let go of it, up, and put the bowl inside."""
    out = -float(s.slides[0])
    handle = _at(s, "wooden_cabinet", *_HANDLES[0]) + np.array([0.0, out, 0.0])
    held = s.turn[1, 2] < -0.8 and float(np.linalg.norm(handle - s.hand)) < 0.03
    if out < (0.125 if held and s.gap < 0.03 else 0.1):
        return draw(s, handle)
    if s.turn[2, 2] > -0.95:
        away = s.hand[1] > handle[1] + 0.08 or s.hand[2] > handle[2] + 0.06
        turn = posed(_DOWN, _ACROSS) if s.hand[2] > handle[2] + 0.1 else s.turn
        rise = 0.1 if away and s.hand[2] < handle[2] + 0.2 else 0.0
        return to(s, s.hand + np.array([0.0, 0.0 if away or s.gap < 0.05 else 0.1, rise]), turn, OPEN)
    bowl = s.places["akita_black_bowl"]
    under = bowl[2] < handle[2] - 0.04 and bowl[0] > s.places["wooden_cabinet"][0] - 0.19 and bowl[1] < handle[1] + 0.06
    if under and bowl[2] > 0.915 and s.gap < 0.012 and float(np.linalg.norm(bowl + ASIDE.point - s.hand)) < 0.03:
        return to(s, s.hand + np.array([-0.05, 0.0, 0.01]), posed(_DOWN, _ALONG), SHUT)  # from below the drawer, before it rises
    return carry(s, "akita_black_bowl", ASIDE, _at(s, "wooden_cabinet", 0, 0.014 + out, 0.168), 1.18)


Script = Callable[[Seen], Array]
_ACROSS, _ALONG = (0.0, 1.0, 0.0), (-1.0, 0.2, 0.0)
_HANDLES = ((0.003, 0.102, 0.184), (0.003, 0.102, 0.110))
"""Of the top drawer and the middle one, from the cabinet, shut."""
BOWL = Hold((0.0, 0.047, 0.042), _ACROSS, 0.006)
ASIDE = Hold((-0.047, 0.0, 0.042), _ALONG, 0.006)
CHEESE = Hold((0.0, 0.0, 0.0), _ACROSS, 0.044)
BOTTLE = Hold((0.0, 0.0, 0.115), _ACROSS, 0.022)
GOODS = {
    "alphabet-soup": Hold((0.0, 0.0, 0.01), _ALONG, 0.064), "bbq-sauce": Hold((0.0, 0.0, 0.02), _ALONG, 0.032),
    "butter": Hold((0.0, 0.0, 0.004), _ACROSS, 0.042), "chocolate-pudding": Hold((0.0, 0.0, 0.004), _ACROSS, 0.048),
    "cream-cheese": Hold((0.0, 0.0, 0.004), _ACROSS, 0.044), "ketchup": Hold((0.0, 0.0, 0.035), _ALONG, 0.040),
    "milk": Hold((0.0, 0.0, 0.03), _ALONG, 0.054), "orange-juice": Hold((0.0, 0.0, 0.03), _ALONG, 0.054),
    "salad-dressing": Hold((0.0, 0.0, 0.035), _ALONG, 0.040), "tomato-sauce": Hold((0.0, 0.0, 0.01), _ALONG, 0.064)}


def _at(s: Seen, name: str, *off: float) -> Array:
    found: Array = s.places[name] + np.array(off)
    return found


def _basket(s: Seen, name: str) -> Array:
    """A thing into the basket, over its wall."""
    return carry(s, name.replace("-", "_"), GOODS[name], _at(s, "basket", 0, 0, 0.12), 0.25)


SCRIPTS: dict[str, Script] = {
    "goal-middle-drawer": lambda s: draw(s, _at(s, "wooden_cabinet", *_HANDLES[1]) - np.array([0.0, s.slides[1], 0.0])),
    "goal-drawer-bowl": stow,
    "goal-bowl-plate": lambda s: carry(s, "akita_black_bowl", BOWL, _at(s, "plate", 0, 0, 0.012), 0.96),
    "goal-bowl-stove": lambda s: carry(s, "akita_black_bowl", BOWL, _at(s, "flat_stove", 0.15, 0, 0.027), 0.98),
    "goal-bowl-cabinet": lambda s: carry(s, "akita_black_bowl", BOWL, _at(s, "wooden_cabinet", 0, 0.02, 0.224), 1.17),
    "goal-cheese-bowl": lambda s: carry(s, "cream_cheese", CHEESE, _at(s, "akita_black_bowl", 0, 0, 0.06), 1.0),
    "goal-bottle-cabinet": lambda s: carry(s, "wine_bottle", BOTTLE, _at(s, "wooden_cabinet", 0, 0.03, 0.226), 1.17),
    "goal-bottle-rack": lambda s: carry(s, "wine_bottle", BOTTLE, _at(s, "wine_rack", 0, 0.075, 0.22), 1.2),
    "goal-plate-stove": lambda s: tow(s, "plate", np.array([-0.025, 0.238])),
    "goal-stove-on": lambda s: twist(s, s.places["flat_stove"]),
    **{f"object-{name}": functools.partial(_basket, name=name) for name in GOODS},
}
