// Asks a server: npm install && node generate.js [HOST:PORT] [PROMPT]. Ctrl-C ends the request.
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const { loadSync } = require("@grpc/proto-loader");

const PROTO = path.join(__dirname, "../../proto/inference.proto");
const { jaxinfer } = grpc.loadPackageDefinition(
  loadSync(PROTO, { keepCase: true, longs: String, enums: String, defaults: true, oneofs: true }),
);

const [target = "127.0.0.1:50051", prompt = "The capital of France is"] = process.argv.slice(2);
// With certificates: grpc.credentials.createSsl(fs.readFileSync("ca.pem")).
const client = new jaxinfer.v1.Inference(target, grpc.credentials.createInsecure());

const metadata = new grpc.Metadata();
if (process.env.JAXINFER_TOKEN) {
  metadata.set("authorization", `Bearer ${process.env.JAXINFER_TOKEN}`);
}

const request = { text: prompt, sampling: { temperature: 0 }, stopping: { max_tokens: 16 } };
const call = client.GenerateStream(request, metadata, { deadline: Date.now() + 60_000 });

call.on("data", (event) => {
  // The oneof's name says which kind of event it is.
  if (event.event === "delta") {
    process.stdout.write(event.delta.text);
  } else if (event.event === "finished") {
    const { reason, usage } = event.finished;
    process.stdout.write(`\n${reason}: ${usage.prompt_tokens} + ${usage.completion_tokens} tokens\n`);
  } else if (event.event === "error") {
    console.error(event.error.message);
  }
});
call.on("error", (error) => {
  console.error(`${grpc.status[error.code]}: ${error.details}`);
  process.exitCode = 1;
});
call.on("end", () => client.close());
process.on("SIGINT", () => call.cancel());
