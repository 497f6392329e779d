"""Asks a server: python generate.py [HOST:PORT] [PROMPT]."""

import sys

from serve.client import Client
from serve.client.errors import ServerError


def main(target: str = "127.0.0.1:50051", prompt: str = "The capital of France is") -> int:
    """Shows an answer at once, and one as it comes."""
    with Client(target, timeout=60) as client:
        try:
            client.wait_until_ready(10)
            info = client.model_info()
            print(f"{info.model}: {info.max_model_len} tokens of context")

            answer = client.generate(prompt, temperature=0, max_tokens=16, logprobs=0)
            print(f"{prompt}{answer.text}")
            print(f"{answer.usage}, log-probability {answer.outputs[0].cumulative_logprob:.3f}")

            talk = [{"role": "user", "content": prompt}]
            # What leaves the block early takes the request along.
            with client.stream_chat(talk, temperature=0, max_tokens=32) as stream:
                for event in stream:
                    print(event.text, end="", flush=True)
            print(f"\n{stream.result.outputs[0].finish_reason}")
        except ServerError as error:
            print(f"{error.code.name}: {error.message}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
