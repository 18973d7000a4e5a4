// Sends messages with nodemailer. Standard input is JSON: {"transport": {...}, "messages": [{...}, ...]}.
// Standard output is JSON: for each message its reply and the recipients that were refused, or its error.
"use strict";

const nodemailer = require("nodemailer");

async function main() {
  const { transport, messages } = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
  const transporter = nodemailer.createTransport(transport);
  const results = await Promise.allSettled(messages.map((message) => transporter.sendMail(message)));
  transporter.close();
  const outcomes = results.map(({ value, reason }) =>
    value ? { response: value.response, rejected: value.rejected } : { error: reason.response || String(reason) }
  );
  process.stdout.write(JSON.stringify(outcomes));
}

main();
