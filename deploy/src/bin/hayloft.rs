//! The command `hayloft`: operates a cluster, or runs one on this machine.

use clap::{Parser, Subcommand};
use hayloft_deploy::{ctl, dev};
use std::io::Write as _;
use std::process::ExitCode;

/// Operates a Hayloft cluster through the admin interface of any of its gateways
#[derive(Parser, Debug)]
#[command(
    name = "hayloft",
    version,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(flatten)]
    connection: ctl::Connection,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    #[command(flatten)]
    Ctl(ctl::Command),
    /// Run a whole cluster on this machine, for trying out and for tests
    Dev(dev::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Dev(options) => dev::run(options).await,
        Command::Ctl(command) => control(&cli.connection, command).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hayloft: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn control(connection: &ctl::Connection, command: &ctl::Command) -> anyhow::Result<()> {
    let client = connection.client()?;
    let report = ctl::run(&client, command).await?;
    let text = if connection.json.is_some() {
        serde_json::to_string_pretty(&report.json)? + "\n"
    } else {
        report.text
    };
    // A closed pipe (`| head`) is no failure of ours.
    let _ = std::io::stdout().write_all(text.as_bytes());
    match report.refusal {
        Some(reason) => Err(anyhow::anyhow!(reason)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn every_command_and_option_has_help() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                let id = argument.get_id();
                assert!(argument.get_help().is_some(), "{} {id} has no help", command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        let command = Cli::command();
        command.clone().debug_assert();
        check(&command);
    }

    #[test]
    fn commands_parse_as_people_write_them() {
        for line in [
            "status --json",
            "layout assign ab12 -z paris -c 1TiB -t ssd -t old",
            "layout config -r maximum --replication-factor 3",
            "layout apply --version 1",
            "layout revert --yes",
            "layout config --replication-factor 5 --zone-redundancy maximum",
            "layout history --json",
            "layout wait --timeout 10m",
            "layout skip-dead-nodes --version 3 --allow-missing-data",
            "node replace nas1 ab12 -c 2T --apply",
            "key create app --allow-create-bucket",
            "key deny app --create-bucket",
            "key import GK1 secret -n app --yes",
            "bucket allow photos --read --write --key app",
            "bucket alias photos pics --local app",
            "--admin-url http://a:1 --cluster x.json bucket list",
            "dev --dir d --storage 5 --zones 3 --gateways 2 --replication 3 --json f --s3-port 3900",
        ] {
            let words = std::iter::once("hayloft").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
        for line in ["layout config", "bucket allow photos --key app", "key allow app", "layout assign -z a"]
        {
            let words = std::iter::once("hayloft").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
