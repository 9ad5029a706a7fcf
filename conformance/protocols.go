package conformance

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/exec"
	"github.com/assay-dev/assay/conformance/target/httpjson"
	"github.com/assay-dev/assay/conformance/target/oip"
	"github.com/assay-dev/assay/conformance/target/openai"
	"github.com/assay-dev/assay/verify/attest"
)

// A protocol is one that can be replayed and judged.
type protocol struct {
	open   func(attest.Target) (target.Target, error)
	decode func(attest.Target) (target.Protocol, error)
}

// protocols are those there are, by their name in documents.
var protocols = map[string]protocol{
	oip.Name: {
		open:   func(t attest.Target) (target.Target, error) { return oip.New(t) },
		decode: func(attest.Target) (target.Protocol, error) { return oip.Protocol{}, nil },
	},
	oip.NameBinary: {
		open:   func(t attest.Target) (target.Target, error) { return oip.New(t) },
		decode: func(attest.Target) (target.Protocol, error) { return oip.Binary{}, nil },
	},
	oip.NameGRPC: {
		open:   func(t attest.Target) (target.Target, error) { return oip.NewGRPC(t) },
		decode: func(attest.Target) (target.Protocol, error) { return oip.GRPC{}, nil },
	},
	openai.NameChat:        openAI,
	openai.NameCompletions: openAI,
	openai.NameEmbeddings:  openAI,
	exec.Name: {
		open:   func(t attest.Target) (target.Target, error) { return exec.New(t) },
		decode: func(attest.Target) (target.Protocol, error) { return exec.Protocol{}, nil },
	},
	httpjson.Name: {
		open:   func(t attest.Target) (target.Target, error) { return httpjson.New(t) },
		decode: func(t attest.Target) (target.Protocol, error) { return httpjson.NewProtocol(t) },
	},
}

var openAI = protocol{
	open:   func(t attest.Target) (target.Target, error) { return openai.New(t) },
	decode: func(t attest.Target) (target.Protocol, error) { return openai.NewProtocol(t) },
}

// Protocols lists the names of the protocols that can be replayed.
func Protocols() []string {
	var names []string
	for name := range protocols {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Open connects to the target an environment document names.
func Open(t attest.Target) (target.Target, error) {
	p, ok := protocols[t.Protocol]
	if !ok {
		return nil, fmt.Errorf("protocol %q is not known; use one of %s", t.Protocol, strings.Join(Protocols(), ", "))
	}
	return p.open(t)
}

// protocolOf returns what judges the answers of a target.
func protocolOf(t attest.Target) (target.Protocol, error) {
	p, ok := protocols[t.Protocol]
	if !ok {
		return nil, fmt.Errorf("protocol %q cannot be judged; this program knows %s", t.Protocol, strings.Join(Protocols(), ", "))
	}
	return p.decode(t)
}

// requestDigest is the digest of the bytes that ask a case of a target: those
// of the suite, or, over another protocol than it was recorded with, those
// that the protocol has for the same question. The bytes that are a request
// name the model and what the server's dialect needs, so they are always the
// target's.
func requestDigest(s *Suite, p target.Protocol, c attest.Case, t attest.Target) (string, error) {
	if t.Protocol == s.Document.Protocol && !s.ofRequests() {
		return c.Request, nil
	}
	q, _, _ := s.question(c, t)
	request, err := p.Encode(q)
	return string(digest.FromBytes(request)), err
}

// responseOf is what was on the wire, out of the record.
func responseOf(o *attest.Observation) target.Response {
	r := target.Response{Status: o.Status, Header: o.Header, Body: o.Response}
	for _, a := range o.Arrivals {
		r.Arrivals = append(r.Arrivals, target.Arrival{Bytes: a.Bytes, After: time.Duration(a.Micros) * time.Microsecond})
	}
	return r
}
