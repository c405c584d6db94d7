//! The loop of one lane: a request, its answer, the next request.

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;

use guestmnt_protocol::frame::{self, Header, Place};
use guestmnt_protocol::message::{Answer, Outcome, Request};

use crate::failure;
use crate::guest::Guest;
use crate::lane::Lane;
pub use crate::lane::LaneError;
use crate::payload::Payload;

/// Serves one lane until the host hangs up.
///
/// # Errors
/// [`LaneError`] where the lane is of no more use: the port failed, or what came by it is no
/// frame. A message that cannot be read within a good frame is answered with `EPROTO`.
pub fn serve(lane: impl AsFd, guest: &Guest) -> Result<(), LaneError> {
    let mut lane = Lane::new(lane);
    let mut head = Vec::with_capacity(256);
    let mut payload = Payload::default();
    let mut by_port = Vec::new();
    while let Some((header, body)) = lane.receive()? {
        let request = request(&header, body);
        let is_mount = matches!(request, Ok(Request::Mount(_)));
        let slot = match header.place {
            Place::Port => None,
            Place::Slot(number) => guest.slot(number).map(|slot| (number, slot)),
        };
        let mut outcome = match request {
            Ok(request) if header.payload_len == 0 => {
                payload.begin(slot);
                carry_out(guest, &request, &[], &mut payload)
            }
            Ok(request) => {
                payload.clear();
                let given = match (header.place, &slot) {
                    (Place::Port, _) if !lane.take_payload(&mut by_port)? => return Ok(()),
                    (Place::Port, _) => Some(by_port.as_slice()),
                    (Place::Slot(_), slot) => {
                        slot.as_ref().map(|(_, slot)| &slot[..header.payload_len])
                    }
                };
                match given {
                    Some(given) => carry_out(guest, &request, given, &mut payload),
                    None => Err(failure::plain(Errno::EPROTO)),
                }
            }
            Err(errno) => Err(failure::plain(errno)),
        };
        if !matches!(outcome, Ok(Answer::Payload)) {
            payload.clear();
        }
        let seq = header.seq;
        let sent = frame::encode(&mut head, seq, &outcome, payload.len(), payload.place());
        if sent.is_err() {
            // Only lists of very many volumes can get here.
            outcome = as_payload(&outcome, &mut payload);
            frame::encode(&mut head, seq, &outcome, payload.len(), payload.place())
                .expect("a payload or a failure with a short text fits a frame");
        }
        lane.send(payload.behind(&head))?;
        if is_mount {
            guest.get_ready();
        }
    }
    Ok(())
}

/// An answer that is too long for a body, in `payload`.
fn as_payload(outcome: &Outcome, payload: &mut Payload) -> Outcome {
    payload.clear();
    let bytes = frame::payload_of(outcome)
        .map_err(|_| failure::explained(Errno::E2BIG, "the answer is too long to be sent"))?;
    payload.set(&bytes);
    Ok(Answer::Payload)
}

/// The request in a frame. Few have a payload.
fn request(header: &Header, body: &[u8]) -> nix::Result<Request> {
    let request: Request = frame::decode_body(body).map_err(|_| Errno::EPROTO)?;
    let good = header.payload_len == 0 || request.has_payload();
    good.then_some(request).ok_or(Errno::EPROTO)
}

/// The last line of defence: nothing is known to panic, but if something did, the lane must go on.
/// What lanes share is either locked for a single step at a time or fit for any state.
fn carry_out(guest: &Guest, request: &Request, given: &[u8], payload: &mut Payload) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| guest.answer(request, given, payload)))
        .unwrap_or_else(|_| Err(failure::plain(Errno::EIO)))
}

#[cfg(test)]
mod tests {
    use guestmnt_protocol::device::DeviceName;
    use guestmnt_protocol::limits::{MAX_BODY, MAX_PAYLOAD};
    use guestmnt_protocol::message::{Content, Volume};

    use super::*;

    fn volumes(count: usize) -> Outcome {
        let volume = Volume {
            device: DeviceName { disk: 0, partition: 1 }.into(),
            size: 1 << 40,
            content: Content::Unknown,
            label: "label".to_owned(),
            uuid: String::new(),
        };
        Ok(Answer::Volumes(vec![volume; count]))
    }

    #[test]
    fn an_answer_that_is_too_long_for_a_body_is_a_payload() {
        let mut payload = Payload::default();
        let long = volumes(MAX_BODY / 10);
        assert_eq!(as_payload(&long, &mut payload), Ok(Answer::Payload));
        let sent = payload.behind(&[]).to_vec();
        assert!(sent.len() > MAX_BODY);
        assert_eq!(frame::decode_body::<Outcome>(&sent), Ok(long));

        let too_long = as_payload(&volumes(MAX_PAYLOAD / 10), &mut payload);
        assert_eq!(too_long.map_err(|failure| i32::from(failure.errno)), Err(libc::E2BIG));
        assert_eq!(payload.len(), 0);
    }
}
