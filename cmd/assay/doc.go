/*
Assay is a model registry that can prove which version of a model runs where,
where it came from, and that it behaves the same everywhere.

This is the tour of the house, from the cellar to the roof. Each stop names the
package to read next.

# What it is for

A company runs the same model in many places. It must be able to say, and to
prove to somebody who does not trust it: this version ran in that environment
on that day; it was released by this team and trained on that data; and it
answered there as it answers in the environment it was approved in. Assay keeps
that record, makes the measurements behind it, and refuses deployments for
which the record is incomplete.

# The cellar: bytes and rows

Package store has two contracts. A DB is an ordered map with atomic, durable
updates; Blobs keeps files under opaque keys. A blob is written under a key
made when the writing starts, and exists once a row points at that key: nothing
is renamed, copied or reference-counted. store/badger and store/fs are the
embedded pair; store/storetest is what every pair must pass, including being
killed.

# The heart: one commit point

Package registry is what a model registry is, with no protocol in it. A change
is a pure function from a state to a batch of rows and an event. One sequencer
runs waiting changes one after another, appends each event's leaf to a Merkle
log (registry/tlog) and commits rows and leaves together, durably, once for the
whole group. So there is no change without a log entry and no log entry without
its change, whatever crashes. All keys stand in one table, registry/keys.go,
each marked as part of the record or merely operational.

Every method takes an access.Actor and asks for itself what the actor may do;
transports only find out who is asking.

# The doors: OCI, gRPC and REST

Package registry/oci speaks the OCI distribution specification: oras, crane,
docker, skopeo, kit and cosign need nothing of ours. Package registry/rpc
answers questions (versions, lineage, what ran where, may this be deployed)
over gRPC and the same over REST, as declared in proto/assay/v1.

# The notary: who said what

Package verify signs statements into Sigstore bundles and turns a bundle, a
digest and a trust file into a *Verified, or an error that says why not. Trust
is per role: the key that releases models cannot certify them. A signer is known
by a key or by what a certificate says, and what counts is when they signed, by
the best evidence there is: a timestamp, the log, none. verify/oms does the same
for OpenSSF Model Signing, from the digests in a manifest. verify/attest
holds every document that is signed or passed between rooms, in canonical form,
with schemas and vectors. verify/gate is a pure function from a policy,
evidence and a time to a decision with reasons.

# The laboratory: does it behave the same?

Package conformance takes a golden suite (inputs, and what the reference
environment answered), writes a plan, replays the inputs against an
environment, keeps every observation, and only then judges: per-case
comparators (conformance/compare), then exact statistics (conformance/stats)
against margins that were fixed before the first request. A verdict can be
recomputed from the stored observations, offline, to the same bytes. The
targets it can talk to are in conformance/target.

The laboratory and the registry never import each other. They meet in OCI
artifacts and in verify/attest.

# The roof: this program

This package is wiring: one file for a verb, serve.go for the server, remote.go
for reaching a registry, output.go for what is printed. Verbs other than serve
and fsck speak OCI and REST as any other client could.
*/
package main
