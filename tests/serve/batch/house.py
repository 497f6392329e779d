"""Lines of requests."""

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def line(custom_id: object, url: str = COMPLETIONS, method: str = "POST", **body: object) -> dict:
    """A line of requests; greedy, of eight tokens, unless the body says otherwise."""
    prompt = (
        {"messages": [{"role": "user", "content": "abc"}]} if url == CHAT else {"prompt": "abc"}
    )
    body = prompt | {"temperature": 0, "max_tokens": 8, "ignore_eos": True} | body
    return {"custom_id": custom_id, "method": method, "url": url, "body": body}
