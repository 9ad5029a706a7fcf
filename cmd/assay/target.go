package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/assay-dev/assay/conformance"
	"github.com/assay-dev/assay/conformance/target/oip"
	"github.com/assay-dev/assay/verify/attest"
)

// targetFlags say how an environment is reached.
type targetFlags struct {
	attest.Target
	options string
}

// register adds the flags; nameFlag is the one for the model's name there.
func (t *targetFlags) register(f *pflag.FlagSet, nameFlag string) {
	f.StringVar(&t.Protocol, "protocol", oip.Name, "how it is spoken to: "+strings.Join(conformance.Protocols(), ", "))
	f.StringVar(&t.URL, "url", "", "where it is reached")
	f.StringVar(&t.Model, nameFlag, "", "the model's name there")
	f.StringVar(&t.Version, "version", "", "the version that must answer")
	f.StringVar(&t.options, "options", "", "a file (YAML or JSON) with what else the protocol has to know; never a secret")
}

// noiseFlags name a second endpoint, on another number of threads.
type noiseFlags struct {
	url     string
	threads []int
}

func (n *noiseFlags) register(f *pflag.FlagSet) {
	f.StringVar(&n.url, "noise-url", "", "a second endpoint of the same model and stack that computes on another number of threads: what that changes is noise")
	f.IntSliceVar(&n.threads, "noise-threads", nil, "OWN,OTHER: on how many threads the two endpoints compute, where a server does not say so itself")
}

// find looks at both endpoints. It returns nil if no second one is named.
func (n *noiseFlags) find(ctx context.Context, t attest.Target) (*attest.OtherThreads, error) {
	switch {
	case n.url == "" && n.threads != nil:
		return nil, usagef("--noise-threads is of the endpoint that --noise-url names")
	case n.url == "":
		return nil, nil
	case n.threads != nil && (len(n.threads) != 2 || n.threads[0] < 1 || n.threads[1] < 1):
		return nil, usagef("--noise-threads %v is not OWN,OTHER: two numbers of threads", n.threads)
	}
	said := [2]int{}
	copy(said[:], n.threads)
	o, err := conformance.FindThreads(ctx, t, n.url, said[0], said[1])
	if err != nil {
		return nil, remedy(err, "name with --noise-url an endpoint that differs in its number of threads alone, and with --noise-threads OWN,OTHER how many they are if a server does not say so; or leave both out")
	}
	return &o, nil
}

// target reads the options.
func (t *targetFlags) target() (attest.Target, error) {
	out := t.Target
	if t.options == "" {
		return out, nil
	}
	raw, err := os.ReadFile(t.options)
	if err != nil {
		return out, remedy(err, "name the file with --options")
	}
	var v map[string]any
	if err := yaml.Unmarshal(raw, &v); err != nil {
		return out, usagef("--options %s: %w", t.options, err)
	}
	text, err := attest.Marshal(v)
	if err != nil {
		return out, fmt.Errorf("--options %s: %w", t.options, err)
	}
	out.Options = string(text)
	return out, nil
}
