"""Models over HTTP: OpenAI's and Anthropic's protocols, on starlette and uvicorn (pip install "lapinfer[serve]").

app.py puts routes and limits together, state.py is what routes share, models.py loads models and lets them go,
answers.py runs requests on a model's scheduler; one module for each protocol. Nothing else imports this room.
"""
