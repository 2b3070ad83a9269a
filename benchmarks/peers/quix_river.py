"""Quix Streams with River: scale, predict, learn, send. As Quix's and River's guides show it."""

import os
from typing import Any

from quixstreams import Application
from river import compose, linear_model, preprocessing

NUMBERS = ("age", "price", "depth", "speed")
RUN = os.environ.get("RUN", "")  # each run begins anew, and writes to a topic of its own

app = Application(broker_address=os.environ["BROKER"], consumer_group=f"quix-river{RUN}", auto_offset_reset="earliest")
views = app.topic("clicks", value_deserializer="json")
predictions = app.topic(f"clicks.quix-river{RUN}", value_serializer="json")
model = compose.Pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression())


def learn(view: dict[str, Any]) -> dict[str, Any]:
    x = {name: view[name] for name in NUMBERS}
    prediction = model.predict_proba_one(x).get(True, 0.5)
    model.learn_one(x, view["clicked"])
    return {"key": view["id"], "prediction": prediction}


app.dataframe(views).apply(learn).to_topic(predictions)

if __name__ == "__main__":
    app.run()
