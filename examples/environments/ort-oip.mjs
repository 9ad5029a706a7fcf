// Serves an ONNX model with a build of ONNX Runtime over the Open Inference
// Protocol v2 (REST): what the environments ort-native and ort-web have in
// common. It can be made wrong on purpose: see the options.
import { createServer } from "node:http";
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";

/** The session and the description of the model in a folder. */
async function load(ort, dir, threads) {
  const beside = join(dir, "preprocess.json");
  const pre = JSON.parse(readFileSync(existsSync(beside) ? beside : join(dirname(resolve(dir)), "preprocess.json")));
  const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(join(dir, "model.onnx"))), {
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
  });
  return { pre, session };
}

/** The shortest decimal that reads back as the same float32. */
function shortest(v) {
  for (let digits = 6; digits < 10; digits++) {
    const text = v.toPrecision(digits);
    if (Math.fround(Number(text)) === v) return String(Number(text));
  }
  return String(v);
}

/** Serves with ort, a build of ONNX Runtime; about says what it is: {server, runtime}. */
export async function start(ort, about, options) {
  const model = await load(ort, options.model, options.threads ?? 1);
  const canary = options.canary ? await load(ort, options.canary, options.threads ?? 1) : null;
  const { pre } = model;
  const base = `/v2/models/${options.name}`;
  let requests = 0;

  const answer = (res, status, value) => {
    res.writeHead(status, { "content-type": "application/json" });
    res.end(typeof value === "string" ? value : JSON.stringify(value));
  };
  const refuse = (res, status, message) => answer(res, status, { error: message });

  async function infer(res, body) {
    const n = ++requests;
    let q;
    try {
      q = JSON.parse(body);
    } catch (e) {
      return refuse(res, 400, `the request is no JSON: ${e.message}`);
    }
    const input = q.inputs?.[0];
    const width = pre.mean.length;
    if (q.inputs?.length !== 1 || input.name !== pre.input) return refuse(res, 400, `one input "${pre.input}" is expected`);
    if (input.datatype !== "FP32") return refuse(res, 400, `input "${pre.input}" is FP32, not ${input.datatype}`);
    const [rows, columns] = input.shape ?? [];
    if (input.shape?.length !== 2 || columns !== width || !(rows >= 1 && rows <= 1024)) {
      return refuse(res, 400, `input "${pre.input}" has shape [n,${width}]`);
    }
    const wrong = q.outputs?.find((o) => o.name !== pre.output);
    if (wrong) return refuse(res, 400, `there is no output "${wrong.name}"; the one is "${pre.output}"`);
    const features = Float32Array.from(input.data?.flat(Infinity) ?? []);
    if (features.length !== rows * width || features.some((v) => !Number.isFinite(v))) {
      return refuse(res, 400, `input "${pre.input}" has not ${rows * width} finite numbers`);
    }
    if (!options.raw) {
      for (let i = 0; i < features.length; i++) {
        const j = i % width;
        // Each step rounded to float32, as a server in another language does.
        features[i] = Math.fround(Math.fround(features[i] - Math.fround(pre.mean[j])) / Math.fround(pre.std[j]));
      }
    }
    const share = options.canaryShare ?? 0;
    const session = canary && Math.floor(n * share) !== Math.floor((n - 1) * share) ? canary.session : model.session;
    const result = await session.run({ [pre.input]: new ort.Tensor("float32", features, [rows, width]) });
    const out = Array.from(result[pre.output].data);
    const classes = pre.labels.length;
    if (options.permute) {
      for (let i = 0; i < out.length; i += classes) out.splice(i, classes, ...out.slice(i + 1, i + classes), out[i]);
    }
    if (!out.every(Number.isFinite)) return refuse(res, 500, "an element of the output is not finite");
    const data = out.map(shortest).join(",");
    answer(res, 200, `{"model_name":${JSON.stringify(options.name)},"model_version":${JSON.stringify(options.version)},` +
      `"id":${JSON.stringify(q.id ?? "")},"outputs":[{"name":${JSON.stringify(pre.output)},"datatype":"FP32","shape":[${rows},${classes}],"data":[${data}]}]}`);
  }

  const server = createServer((req, res) => {
    let path = req.url;
    const versioned = `${base}/versions/${options.version}`;
    if (path === versioned || path.startsWith(versioned + "/")) path = base + path.slice(versioned.length);
    const route = `${req.method} ${path}`;
    if (route === "GET /v2") return answer(res, 200, { name: about.server, version: "1", extensions: [] });
    if (["GET /v2/health/live", "GET /v2/health/ready", `GET ${base}/ready`].includes(route)) return answer(res, 200, { ready: true });
    if (route === `GET ${base}`) {
      return answer(res, 200, {
        name: options.name, versions: [options.version], platform: "onnxruntime_onnx",
        inputs: [{ name: pre.input, datatype: "FP32", shape: [-1, pre.mean.length] }],
        outputs: [{ name: pre.output, datatype: "FP32", shape: [-1, pre.labels.length] }],
        parameters: { runtime: about.runtime, precision: "fp32", threads: String(options.threads ?? 1) },
      });
    }
    if (route !== `POST ${base}/infer`) return refuse(res, 404, `there is no ${route} here`);
    const chunks = [];
    let size = 0;
    req.on("data", (c) => {
      size += c.length;
      if (size <= 16 << 20) chunks.push(c);
    });
    req.on("end", () => {
      if (size > 16 << 20) return refuse(res, 413, "the request is too large");
      infer(res, Buffer.concat(chunks).toString()).catch((e) => refuse(res, 500, `computing: ${e.message}`));
    });
  });
  const [host, port] = (options.addr ?? "127.0.0.1:0").split(/:(?=\d+$)/);
  await new Promise((done) => server.listen(Number(port), host, done));
  return server;
}

/** What the command line says, served until a signal. */
export async function main(ort, about) {
  const { values: v } = parseArgs({
    options: {
      addr: { type: "string", default: "127.0.0.1:0" },
      model: { type: "string" },
      name: { type: "string" },
      version: { type: "string", default: "1" },
      threads: { type: "string", default: "1" },
      "port-file": { type: "string" },
      "no-normalise": { type: "boolean" },
      "permute-classes": { type: "boolean" },
      canary: { type: "string" },
      "canary-share": { type: "string", default: "0" },
    },
  });
  if (!v.model || !v.name) {
    console.error(about.server + ": --model and --name are both needed");
    process.exit(2);
  }
  const server = await start(ort, about, {
    addr: v.addr, model: v.model, name: v.name, version: v.version, threads: Number(v.threads),
    raw: v["no-normalise"], permute: v["permute-classes"], canary: v.canary, canaryShare: Number(v["canary-share"]),
  });
  const address = `${server.address().address}:${server.address().port}`;
  if (v["port-file"]) {
    writeFileSync(v["port-file"] + ".partial", address + "\n");
    renameSync(v["port-file"] + ".partial", v["port-file"]);
  }
  console.error(`serving ${v.name} ${v.version} on http://${address}`);
  for (const signal of ["SIGINT", "SIGTERM"]) {
    process.on(signal, () => {
      server.close(() => process.exit(0));
      server.closeAllConnections();
    });
  }
}
