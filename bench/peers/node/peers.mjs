// The peer in Node. `node peers.mjs VARIANT FILE COUNT` speaks as `bench/peers/child.py` says.

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

import { unmarshall } from "@aws-sdk/util-dynamodb";

const IMAGES = ["NewImage", "OldImage"];
// Of numbers their text is kept: as they are, 38 digits are refused.
const OPTIONS = { wrapNumbers: (text) => text };

const VARIANTS = {
  "@aws-sdk/util-dynamodb": (payload) => {
    const { dynamodb } = JSON.parse(payload.toString());
    for (const name of ["Keys", ...IMAGES]) {
      if (dynamodb[name] !== undefined) dynamodb[name] = unmarshall(dynamodb[name], OPTIONS);
    }
    return dynamodb;
  },
};

function readPayloads(file, count) {
  const all = readFileSync(file);
  const payloads = [];
  for (let at = 0; payloads.length < count; at += 4 + payloads.at(-1).length) {
    payloads.push(all.subarray(at + 4, at + 4 + all.readUInt32LE(at)));
  }
  return payloads;
}

const [variant, file, count] = process.argv.slice(2);
const decode = VARIANTS[variant];
const payloads = readPayloads(file, Number(count));
const found = payloads.flatMap((payload) => {
  const change = decode(payload);
  return IMAGES.filter((name) => name in change).map((name) => Number(change[name].Stock));
});
console.log(payloads.length, found.length, found.reduce((sum, stock) => sum + stock, 0));

for await (const _ of createInterface({ input: process.stdin })) {
  for (const payload of payloads) decode(payload);
  console.log("done");
}
