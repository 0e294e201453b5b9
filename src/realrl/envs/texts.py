"""What may be said of Meta-World's tasks: every text is one task's alone. The last of a task's is never trained on; it asks whether what
was learned is the words or what they mean."""

from __future__ import annotations

_SAID = """
assembly: put the ring over the peg | assemble the ring onto the post | slip the round nut down over the upright peg
basketball: put the ball into the basket | drop the basketball through the hoop | score a basket with the ball
bin-picking: move the cube from one bin into the other | take the cube to the next bin | carry the block to the other container
box-close: put the lid on the box | close the box with its lid | cover the box
button-press: press the button on the front | push the front button in | hit the button that faces you
button-press-topdown: press the button from above | push the button down | hit the button on the top
button-press-topdown-wall: press the button from above behind the wall | push the top button down past the barrier | hit it over the wall
button-press-wall: go around the wall and press the button | push the front button behind the wall | hit the button past the barrier
coffee-button: press the button of the coffee machine | make a coffee | start the espresso maker
coffee-pull: pull the mug away from the coffee machine | take the cup from under the coffee machine | draw the coffee cup back towards you
coffee-push: push the mug under the coffee machine | put the cup below the coffee spout | slide the coffee cup to the machine
dial-turn: turn the dial | rotate the knob | give the round dial a twist
disassemble: take the ring off the peg | lift the nut from its post | remove the ring from the upright peg
door-close: close the door | push the door shut | shut the door
door-lock: lock the door | turn the lock to closed | bolt the door
door-open: open the door | pull the door open | swing the door wide
door-unlock: unlock the door | turn the lock to open | unbolt the door
drawer-close: close the drawer | push the drawer in | slide the drawer shut
drawer-open: open the drawer | pull the drawer out | slide the drawer towards you
faucet-close: turn the faucet clockwise | close the tap | shut off the water at the faucet
faucet-open: turn the faucet counter-clockwise | open the tap | let the water run from the faucet
hammer: hammer the nail in | drive the nail into the wall with the hammer | strike the nail
hand-insert: put the hand into the hole | reach down into the opening | lower the gripper into the gap
handle-press: press the handle down | push down on the lever in front | lower the handle
handle-press-side: press the handle at the side down | push down on the sideways lever | lower the side handle
handle-pull: pull the handle up | lift the lever in front | raise the handle
handle-pull-side: pull the handle at the side up | lift the sideways lever | raise the side handle
lever-pull: pull the long lever | swing the long lever up | move the big lever all the way
peg-insert-side: insert the peg into the hole at the side | push the peg sideways into the socket | fit the stick into the box's side hole
peg-unplug-side: unplug the peg from the side | pull the peg out of the socket | draw the stick from the side hole
pick-out-of-hole: pick the puck out of the hole | lift the puck from the pit | get the puck from inside the hole
pick-place: pick the puck up and carry it to the goal | lift the puck to the target in the air | bring the puck up to the mark
pick-place-wall: lift the puck over the wall to the goal | carry the puck across the barrier | take the puck to the target behind the wall
plate-slide: slide the plate into the net | push the plate forward into the cabinet | shove the dish ahead into the goal
plate-slide-back: pull the plate back out of the net | draw the plate back to you from the cabinet | bring the dish back from the goal
plate-slide-back-side: pull the plate back out sideways | draw the plate out of the cabinet's side | bring the dish out sideways
plate-slide-side: slide the plate into the net sideways | push the plate sideways into the cabinet | shove the dish into the goal's side
push: push the puck to the goal | slide the puck across the table to the target | move the puck along the table to the mark
push-back: pull the puck back to the goal near you | drag the puck backwards | bring the puck back over the table
push-wall: push the puck around the wall to the goal | slide the puck past the barrier | move the puck along the table behind the wall
reach: reach the goal with the hand | move the gripper to the target | bring the fingers to the mark
reach-wall: reach the goal behind the wall | move the gripper past the wall to the target | bring the fingers around the barrier to the mark
shelf-place: put the puck on the shelf | place the block onto the shelf | set the cube up on the rack
soccer: kick the ball into the goal | push the football into the net | shoot the ball
stick-pull: pull the thermos with the stick | hook the handle with the stick and draw it back | use the rod to drag the flask
stick-push: push the thermos with the stick | use the stick to shove the flask away | poke the bottle forward with the rod
sweep: sweep the puck off the table | wipe the cube away to the side | brush the block off the edge
sweep-into: sweep the puck into the hole | brush the cube into the opening | wipe the block down the pit
window-close: close the window | slide the window shut | push the window to
window-open: open the window | slide the window open | push the window aside
"""

TEXTS: dict[str, tuple[str, ...]] = {
    f"{name}-v3": tuple(text.strip() for text in said.split("|"))
    for name, _, said in (line.partition(": ") for line in _SAID.strip().splitlines())}
