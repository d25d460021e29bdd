"""The model over HTTP: sockets and limits, llama.cpp's and OpenAI's endpoints, a chat page."""
