package conformance

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/verify/attest"
)

// A part of a suite can be sealed: whoever runs an environment must not be
// able to learn its cases beforehand. The suite that is pushed then has of each
// sealed case its id, its stratum and the digest of its canonical bytes; the
// bytes themselves are kept by whoever measures, and are given to the replay
// and to everybody who judges again. They cannot be exchanged for others, and
// the digest does not give them away: each case has a salt.
//
// What the environment answers to a sealed case is in the record of the replay
// as for any other; what it was asked is not.

// A sealedCase is a line of the sealed part. Its canonical bytes (RFC 8785)
// are what the digest is of.
type sealedCase struct {
	Salt    string                  `json:"salt"` // 32 random bytes, in hexadecimal digits
	Case    attest.Case             `json:"case"`
	Inputs  map[string]sealedTensor `json:"inputs"`
	Outputs map[string]sealedTensor `json:"outputs"`
	Text    *attest.Text            `json:"text,omitempty"` // of a suite of texts, and then no tensors, or of one of embeddings
}

// A sealedTensor is a tensor as bits.
type sealedTensor struct {
	Datatype string  `json:"datatype"`
	Shape    []int64 `json:"shape"`
	Bits     []byte  `json:"bits"` // base64 in JSON
}

// isClosed reports whether all that is known of a case is its digest.
func isClosed(c attest.Case) bool { return c.Sealed != "" && c.Request == "" }

// Closed is how many cases are sealed and were not opened.
func (s *Suite) Closed() (n int) {
	for _, c := range s.Cases {
		if isClosed(c) {
			n++
		}
	}
	return n
}

// Sealed is how many cases are sealed, opened or not.
func (s *Suite) Sealed() (n int) {
	for _, c := range s.Cases {
		if c.Sealed != "" {
			n++
		}
	}
	return n
}

// Seal seals the cases whose ids are in which (of sampled texts the samples of these
// prompts), and returns the sealed part:
// what [Suite.Open] takes. The suite stays open; its artifact is not. random
// is where the salts come from.
func (s *Suite) Seal(which map[string]bool, random io.Reader) ([]byte, error) {
	if s.Sealed() > 0 {
		return nil, errors.New("the suite has a sealed part already")
	}
	sealed := slices.Clone(s.Cases)
	var part bytes.Buffer
	n := 0
	for i, c := range sealed {
		if !which[c.ID] && !(s.sampled() && which[c.Cluster]) {
			continue
		}
		var salt [32]byte
		if _, err := io.ReadFull(random, salt[:]); err != nil {
			return nil, fmt.Errorf("sealing case %s: %w", c.ID, err)
		}
		line := sealedCase{Salt: hex.EncodeToString(salt[:]), Case: c, Inputs: map[string]sealedTensor{}, Outputs: map[string]sealedTensor{}}
		for _, spec := range s.Document.Inputs {
			t := s.Tensors[c.InputTensor(spec.Name)]
			line.Inputs[spec.Name] = sealedTensor{t.Datatype, t.Shape, t.Bits}
		}
		for _, spec := range s.Document.Outputs {
			t := s.Tensors[c.OutputTensor(spec.Name)]
			line.Outputs[spec.Name] = sealedTensor{t.Datatype, t.Shape, t.Bits}
		}
		if s.ofRequests() {
			text := s.Texts[c.ID]
			line.Text = &text
		}
		raw, err := attest.Marshal(line)
		if err != nil {
			return nil, fmt.Errorf("sealing case %s: %w", c.ID, err)
		}
		if len(raw) > attest.MaxDocument {
			return nil, fmt.Errorf("case %s has %d bytes, and a sealed case may have %d", c.ID, len(raw), attest.MaxDocument)
		}
		part.Write(append(raw, '\n'))
		sealed[i].Sealed = string(digest.FromBytes(raw))
		n++
	}
	if n == 0 {
		return nil, errors.New("no case of the suite is to be sealed")
	}
	s.Cases = sealed
	return part.Bytes(), nil
}

// Open opens the sealed cases of a suite with their sealed part. It must be
// whole, and each of its lines must be what the suite was sealed with; else
// the suite stays closed.
func (s *Suite) Open(part []byte) error {
	if s.Closed() == 0 {
		return errors.New("the suite has no sealed case that is not open")
	}
	cases, tensors, texts := slices.Clone(s.Cases), maps.Clone(s.Tensors), maps.Clone(s.Texts)
	n := 0
	for len(part) > 0 {
		line, rest, _ := bytes.Cut(part, []byte("\n"))
		part = rest
		n++
		d := string(digest.FromBytes(line))
		i := slices.IndexFunc(cases, func(c attest.Case) bool { return c.Sealed == d })
		if i < 0 {
			return fmt.Errorf("sealed part, line %d: its digest is %s, and no case of the suite was sealed with that", n, d)
		}
		if !isClosed(cases[i]) {
			return fmt.Errorf("sealed part, line %d: case %s is there twice", n, cases[i].ID)
		}
		var open sealedCase
		if err := attest.Unmarshal(line, &open); err != nil {
			return fmt.Errorf("sealed part, line %d: %w", n, err)
		}
		switch {
		case open.Case.ID != cases[i].ID || open.Case.Stratum != cases[i].Stratum:
			return fmt.Errorf("sealed part, line %d: it is case %s of stratum %s, and the suite has it as %s of %s", n, open.Case.ID, open.Case.Stratum, cases[i].ID, cases[i].Stratum)
		case open.Case.Request == "" || open.Case.Sealed != "":
			return fmt.Errorf("sealed part, line %d: case %s is not open in it", n, open.Case.ID)
		}
		open.Case.Sealed = d
		cases[i] = open.Case
		put := func(key, name string, t sealedTensor) error {
			one := compare.Tensor{Name: name, Datatype: t.Datatype, Shape: t.Shape, Bits: t.Bits}
			tensors[key] = one
			_, err := one.Values() // of a type, and of its size
			return err
		}
		var err error
		for _, spec := range s.Document.Inputs {
			err = errors.Join(err, put(open.Case.InputTensor(spec.Name), spec.Name, open.Inputs[spec.Name]))
		}
		for _, spec := range s.Document.Outputs {
			err = errors.Join(err, put(open.Case.OutputTensor(spec.Name), spec.Name, open.Outputs[spec.Name]))
		}
		if err != nil {
			return fmt.Errorf("sealed part, line %d: case %s: %w", n, open.Case.ID, err)
		}
		if len(open.Inputs) != len(s.Document.Inputs) || len(open.Outputs) != len(s.Document.Outputs) {
			return fmt.Errorf("sealed part, line %d: case %s has other tensors than the suite says", n, open.Case.ID)
		}
		if (open.Text != nil) != s.ofRequests() || open.Text != nil && open.Text.ID != open.Case.ID {
			return fmt.Errorf("sealed part, line %d: case %s has another text than the suite says", n, open.Case.ID)
		}
		if open.Text != nil {
			if texts == nil {
				texts = map[string]attest.Text{}
			}
			texts[open.Case.ID] = *open.Text
		}
	}
	opened := &Suite{Document: s.Document, Criteria: s.Criteria, Cases: cases, Tensors: tensors, Texts: texts}
	if closed := opened.Closed(); closed > 0 {
		return fmt.Errorf("sealed part: %d sealed cases are not in it", closed)
	}
	if err := opened.validate(); err != nil {
		return err
	}
	*s = *opened
	return nil
}

// public returns the cases, tensors and texts that the artifact shows.
func (s *Suite) public() ([]attest.Case, map[string]compare.Tensor, map[string]attest.Text) {
	if s.Sealed() == 0 {
		return s.Cases, s.Tensors, s.Texts
	}
	cases, tensors, texts := slices.Clone(s.Cases), maps.Clone(s.Tensors), maps.Clone(s.Texts)
	for i, c := range cases {
		if c.Sealed == "" {
			continue
		}
		cases[i] = attest.Case{ID: c.ID, Stratum: c.Stratum, Sealed: c.Sealed}
		delete(texts, c.ID)
		for _, spec := range s.Document.Inputs {
			delete(tensors, c.InputTensor(spec.Name))
		}
		for _, spec := range s.Document.Outputs {
			delete(tensors, c.OutputTensor(spec.Name))
		}
	}
	return cases, tensors, texts
}
