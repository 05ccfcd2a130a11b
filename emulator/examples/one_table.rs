//! A database of one table, for a demo on a machine where no PostgreSQL can be installed.
//!
//! It prints the address it listens on, a free port of 127.0.0.1, and serves until it is killed. A client sends one
//! line, is answered, and the connection ends:
//!
//! ```text
//! TABLE     the table
//! COPY      the same number of long rows each time, some tens of megabytes
//! ```

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

const TABLE: &str = " name      | country | berths
-----------+---------+--------
 Hamburg   | DE      |    290
 Rotterdam | NL      |    350
 Yokohama  | JP      |    240
(3 rows)
";

/// Rows of a copy, 65 bytes each: enough that a cut hits it in the middle.
const ROWS: u32 = 1_000_000;

/// The longest line that is read: no request has more.
const LONGEST_LINE: u64 = 64;

fn main() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    writeln!(io::stdout(), "{}", listener.local_addr()?)?;
    for client in listener.incoming() {
        let client = client?;
        // A client that leaves is no reason to say anything.
        thread::spawn(move || answer(client).ok());
    }
    Ok(())
}

fn answer(client: TcpStream) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(client.try_clone()?.take(LONGEST_LINE)).read_line(&mut line)?;
    let mut out = BufWriter::new(client);
    match line.trim_end() {
        "TABLE" => out.write_all(TABLE.as_bytes())?,
        "COPY" => {
            for row in 0..ROWS {
                // Two numbers that look like noise, so that a lost or doubled row shows in a checksum.
                let noise = u64::from(row).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                writeln!(
                    out,
                    "{row:08}\t{noise:020}\t{:020}\tharbour-log",
                    noise.rotate_left(29)
                )?;
            }
        }
        other => writeln!(out, "there is no `{other}` here, only TABLE and COPY")?,
    }
    out.flush()
}
