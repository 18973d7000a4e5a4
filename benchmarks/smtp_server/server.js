// npm's smtp-server as a server that takes every message and forgets it: node server.js PORT [refusing | CERTIFICATE],
// with STARTTLS if there is one
const fs = require('fs');
const { SMTPServer } = require('smtp-server');

const counts = { messages: 0, recipients: 0 };
const options = {
    disabledCommands: ['AUTH', 'STARTTLS'],
    disableReverseLookup: true,
    logger: false,
    closeTimeout: 100,
    socketTimeout: 600000, // clients wait here while others are measured
    onData(stream, session, done) {
        stream.on('end', () => {
            counts.messages += 1;
            counts.recipients += session.envelope.rcptTo.length;
            done(null, 'OK');
        });
        stream.resume();
    },
};
const more = process.argv[3];
if (more === 'refusing') options.maxClients = 1;
else if (more) {
    options.key = options.cert = fs.readFileSync(more);
    options.disabledCommands = ['AUTH'];
}
const server = new SMTPServer(options);
server.on('error', () => {}); // a client that leaves
server.server.listen(Number(process.argv[2]), '127.0.0.1', 1024);
process.on('SIGTERM', () => {
    console.log(JSON.stringify(counts));
    process.exit(0);
});
