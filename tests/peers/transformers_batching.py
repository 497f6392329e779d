"""A batch of random prompts through transformers' continuous batching, on the machine that is here.

``python -m tests.peers.transformers_batching --model llama-3.1-8b --num-prompts 64 --input-len 1024
--output-len 128``, beside ``jaxinfer bench throughput`` with the same arguments and ``--load-format
dummy``. The model has the preset's shape and random weights in bfloat16. Needs the extra
``golden``. The last line of standard output is JSON, under the names of ``jaxinfer bench``.
"""

import argparse
import json
import time

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from jaxinfer.bench.workload import random_workload
from jaxinfer.presets import find_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama-3.1-8b", help="a preset")
    parser.add_argument("--num-prompts", type=int, default=64)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--attention", default="sdpa", help="sdpa, flash_attention_2, ...")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fields = find_config(arguments.model)
    config = AutoConfig.for_model(**fields)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation=arguments.attention
        ).eval()
    workload = random_workload(
        arguments.num_prompts,
        input_len=arguments.input_len,
        output_len=arguments.output_len,
        vocab_size=config.vocab_size,
    )
    prompts = [list(prompt["prompt_token_ids"]) for prompt in workload.prompts]
    generation = GenerationConfig(
        max_new_tokens=arguments.output_len,
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=0,
    )
    # What the first batch sets up is not counted, and stays for the second.
    options = {"generation_config": generation, "persistent_manager": True}
    model.generate_batch(inputs=prompts[:2], **options)
    start = time.perf_counter()
    outputs = model.generate_batch(inputs=prompts, **options)
    duration = time.perf_counter() - start
    num_outputs = sum(len(output.generated_tokens) for output in outputs.values())
    print(
        json.dumps(
            {
                "peer": f"transformers {transformers.__version__}, torch {torch.__version__}",
                "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
                "model": arguments.model,
                "completed": len(outputs),
                "duration": duration,
                "total_output_tokens": num_outputs,
                "output_throughput": num_outputs / duration,
            }
        )
    )


if __name__ == "__main__":
    main()
