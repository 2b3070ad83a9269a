"""A stock Faust agent with River: scale, predict, learn, send. As Faust's and River's guides show it."""

import os
from typing import Any

import faust
from river import compose, linear_model, preprocessing

NUMBERS = ("age", "price", "depth", "speed")
RUN = os.environ.get("RUN", "")  # each run begins anew, and writes to a topic of its own

app = faust.App(
    f"faust-river{RUN}",
    broker=f"kafka://{os.environ['BROKER']}",
    store="memory://",
    topic_disable_leader=True,
    web_enabled=False,
)
views = app.topic("clicks", key_type=bytes, value_serializer="json")
predictions = app.topic(f"clicks.faust-river{RUN}", key_type=bytes, value_serializer="json")
model = compose.Pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression())


@app.agent(views)
async def learn(stream: Any) -> None:
    async for key, view in stream.items():
        x = {name: view[name] for name in NUMBERS}
        prediction = model.predict_proba_one(x).get(True, 0.5)
        model.learn_one(x, view["clicked"])
        await predictions.send(key=key, value={"key": view["id"], "prediction": prediction})


if __name__ == "__main__":
    app.main()
