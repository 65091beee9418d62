"""One trainer and three generators: whoever is there finds the others by the roster, and works on the newest weights.

python rl.py

One generator dies in the middle. The others meet again without it, and go on from the version that the trainer brings.
"""

# ruff: noqa: T201 - an example prints what it finds

import asyncio

import arendezvous as ar

ROLES = {"trainer": ar.Role(1), "generator": ar.Role(2, 8)}
RUN = {"run_id": "rl", "roles": ROLES, "facts": {"version": "max"}, "last_call_timeout": 0.2}


async def trainer(url: str) -> None:
    """Trains three versions of the weights, each once all generators have it."""
    version = 0
    async with ar.open_rendezvous(url, node="trainer", **RUN) as rdzv:
        async for round in rdzv.rounds(
            role="trainer", data={"weights": "http://trainer/"}, facts={"version": version}
        ):
            generators = [member for member in await round.members() if member.role == "generator"]
            print(f"trainer: round with {', '.join(one.data['url'] for one in generators)}")
            with round.scope:
                while version < 3:
                    version = await round.agree("weights", version, "max") + 1
                    await rdzv.update({"version": version})
                await round.barrier("done")
                await rdzv.set_closed("trained")


async def generator(url: str, name: str, dies: asyncio.Event | None = None) -> None:
    """Generates with the newest weights that the trainer has."""
    async with ar.open_rendezvous(url, node=name, **RUN) as rdzv:
        async for round in rdzv.rounds(
            role="generator", data={"url": f"http://{name}/"}, facts={"version": 0}
        ):
            with round.scope:
                version = 0
                while version < 2:
                    version = await round.agree("weights", 0, "max")
                    if dies is not None:
                        return  # without a word, as far as its work goes
                await round.barrier("done")
        print(f"{name}: has version {version}")
