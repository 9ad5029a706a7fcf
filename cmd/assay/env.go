package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"oras.land/oras-go/v2/errdef"

	"github.com/assay-dev/assay/conformance"
	"github.com/assay-dev/assay/conformance/fingerprint"
	pb "github.com/assay-dev/assay/proto/assay/v1"
	"github.com/assay-dev/assay/verify/attest"
)

// environmentTag names the current document in the repository of an environment.
const environmentTag = "current"

func newEnvCommand(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "env",
		Short: "Register environments, and ask what ran in them",
		Long:  "Register the places where models are served, see what changed in them, and ask what ran there.",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newEnvRegisterCommand(g), newEnvShowCommand(g), newEnvDiffCommand(g), newEnvListCommand(g), newEnvRanCommand(g))
	return c
}

// localFlags say which machine is looked at, and how closely.
type localFlags struct {
	local bool
	pid   int
	cloud string
}

func (l *localFlags) register(f *pflag.FlagSet, local string) {
	f.BoolVar(&l.local, "local", false, local)
	f.IntVar(&l.pid, "pid", 0, "the process that serves the model: its libraries, settings and limits are what counts (implies --local)")
	f.StringVar(&l.cloud, "instance-metadata", "", "ask this cloud's instance metadata service for the region: "+strings.Join(fingerprint.Clouds, ", ")+" (implies --local)")
}

// wanted reports whether this machine is to be looked at.
func (l *localFlags) wanted() bool { return l.local || l.pid != 0 || l.cloud != "" }

func (l *localFlags) collect(ctx context.Context) (fingerprint.Fields, error) {
	if l.pid < 0 {
		return nil, usagef("--pid %d is no process", l.pid)
	}
	m := fingerprint.This(l.pid)
	if l.pid != 0 {
		if _, err := fs.Stat(m.Root, fmt.Sprintf("proc/%d", l.pid)); err != nil {
			return nil, remedy(fmt.Errorf("process %d: it is not running here", l.pid), "name the process that serves the model with --pid, or leave it out")
		}
	}
	if l.cloud != "" {
		ask, err := fingerprint.InstanceMetadata(nil, l.cloud)
		if err != nil {
			return nil, usagef("--instance-metadata: %w", err)
		}
		m.Metadata = ask
	}
	return fingerprint.Collect(ctx, m), nil
}

func newEnvRegisterCommand(g *globals) *cobra.Command {
	var flags targetFlags
	var labels map[string]string
	var local localFlags
	c := &cobra.Command{
		Use:   "register NAME",
		Short: "Describe an environment as it is now",
		Long: `Describe an environment as it is now: where it is reached, what it declares about
itself and, with --local, what can be seen of this machine: processors, memory,
kernel, numeric libraries, thread and precision settings, GPUs and their
drivers, the container's image, region, time zone and locale. Each field says
whether it was observed or declared, or why it could not be had. Nothing is
asked over the network for it unless --instance-metadata says so.

If nothing changed since the last time, its document stays the one it was, and
so do certificates.`,
		Example: `  assay env register prod-eu --url http://10.1.2.3:8000 --model credit --version 1.4.0 --label region=eu-central-1
  assay env register edge-7 --url http://127.0.0.1:8000 --model credit --pid $(pidof tritonserver)`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := flags.target()
			if err != nil {
				return err
			}
			tg, err := conformance.Open(t)
			if err != nil {
				return err
			}
			d, err := tg.Describe(cmd.Context())
			if err != nil {
				return remedy(fmt.Errorf("environment %s: %w", args[0], err), "start it, or correct --url, --model and --version")
			}
			e := attest.Environment{Name: args[0], Target: t, Labels: labels, Fingerprint: fingerprint.Declared(d), RecordedAt: time.Now().UTC().Truncate(time.Second)}
			if local.wanted() {
				fields, err := local.collect(cmd.Context())
				if err != nil {
					return err
				}
				maps.Copy(e.Fingerprint, fields)
			}
			repo, _, err := g.repository(attest.EnvironmentRepository(args[0]) + ":" + environmentTag)
			if err != nil {
				return err
			}
			state := "registered"
			old, desc, err := g.environment(cmd.Context(), args[0])
			switch {
			case err == nil && len(attest.Diff(old, e)) == 0:
				return g.printEnvironment(old, desc, "unchanged")
			case err == nil:
				state = fmt.Sprintf("changed (%d fields; 'assay env diff %s' says which, and what that voids)", len(attest.Diff(old, e)), args[0])
			case !errors.Is(err, errdef.ErrNotFound):
				return err
			}
			a, err := conformance.EnvironmentArtifact(e)
			if err != nil {
				return err
			}
			// The second tag keeps the document when the first moves on. It sorts as
			// the times do, and two documents of one second have two.
			keep := e.RecordedAt.Format("20060102T150405Z") + "-" + a.Descriptor.Digest.Encoded()[:12]
			if err := g.pushDocument(cmd.Context(), repo, a, environmentTag, keep); err != nil {
				return err
			}
			return g.printEnvironment(e, a.Descriptor, state)
		},
	}
	f := c.Flags()
	flags.register(f, "model")
	f.StringToStringVar(&labels, "label", nil, "labels, KEY=VALUE")
	local.register(f, "the model is served on this machine: add what can be seen of it")
	c.MarkFlagRequired("url")
	c.MarkFlagRequired("model")
	return c
}

// environment returns the current document of an environment.
func (g *globals) environment(ctx context.Context, name string) (attest.Environment, ocispec.Descriptor, error) {
	repo, _, err := g.repository(attest.EnvironmentRepository(name) + ":" + environmentTag)
	if err != nil {
		return attest.Environment{}, ocispec.Descriptor{}, err
	}
	desc, err := repo.Resolve(ctx, environmentTag)
	if errors.Is(err, errdef.ErrNotFound) {
		return attest.Environment{}, desc, remedy(fmt.Errorf("environment %s: %w", name, errdef.ErrNotFound), "assay env register %s --url … --model …", name)
	}
	if err != nil {
		return attest.Environment{}, desc, g.explain(err, "environment "+name)
	}
	e, err := conformance.ReadEnvironment(ctx, g.fetcher(repo), desc)
	return e, desc, err
}

func (g *globals) printEnvironment(e attest.Environment, desc ocispec.Descriptor, state string) error {
	return g.print(struct {
		Digest   string             `json:"digest"`
		State    string             `json:"state"`
		Document attest.Environment `json:"document"`
	}{string(desc.Digest), state, e}, func(w io.Writer) {
		fmt.Fprintf(w, "environment %s: %s\n  document %s\n  target   %s at %s, model %s %s\n", e.Name, state, desc.Digest, e.Target.Protocol, e.Target.URL, e.Target.Model, e.Target.Version)
		for _, k := range slices.Sorted(maps.Keys(e.Labels)) {
			fmt.Fprintf(w, "  label    %s = %s\n", k, e.Labels[k])
		}
		for _, k := range slices.Sorted(maps.Keys(e.Fingerprint)) {
			f := e.Fingerprint[k]
			if f.Assurance == attest.Unavailable {
				fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf("  %-11s %s: %s", f.Assurance, k, f.Reason), ": "))
				continue
			}
			fmt.Fprintf(w, "  %-11s %s = %s\n", f.Assurance, k, clip(f.Value, 60))
		}
	})
}

// clip shortens a text for people; the whole of it is in -o json.
func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "…"
	}
	return s
}

func newEnvShowCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "show NAME",
		Short:   "Show what an environment is now",
		Long:    "Show what an environment is now, and how each part of it is known.",
		Example: "  assay env show prod-eu",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, desc, err := g.environment(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return g.printEnvironment(e, desc, "current")
		},
	}
}

func newEnvListCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the environments",
		Long:    "List the environments that are registered.",
		Example: "  assay env list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var answer pb.ListEnvironmentsResponse
			if err := g.api(cmd.Context(), "GET", "environments", nil, nil, &answer); err != nil {
				return err
			}
			return g.printProto(&answer, func(w io.Writer) { fmt.Fprintln(w, strings.Join(answer.Names, "\n")) })
		},
	}
}
